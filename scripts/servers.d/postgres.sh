# shellcheck shell=bash
# Sourced by scripts/servers. How Postgres is made, started and stopped.

launch_postgres() {
  local home extra
  require_free "$(postgres_port)"
  within 30 not backends_left || die "backends of a Postgres that was killed are still running"
  home=$(make_home postgres postgres)
  # Nothing of this cluster is running, though to Postgres a zombie would look as if.
  rm -f "$home/data/postmaster.pid"
  if [[ ! -d $home/data ]]; then
    if [[ -n ${POSTGRES_PRIMARY:-} ]]; then copy_primary "$home"; else create_database "$home"; fi
  fi
  read -ra extra <<<"${POSTGRES_OPTIONS:-}"
  say "starting Postgres on port $(postgres_port)"
  # No Unix socket: its path is limited to 107 bytes, DIR's is not.
  launch postgres "${as_postgres[@]}" "$postgres_bin/postgres" -D "$home/data" -p "$(postgres_port)" \
    -c cluster_name="$(mark_of postgres)" -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
    -c max_connections=200 -c shared_buffers=128MB -c wal_buffers=16MB -c max_wal_size=4GB \
    -c checkpoint_timeout=15min -c log_line_prefix='%m [%p] %a ' "${extra[@]}"
}

create_database() {
  say "creating a database cluster in $1"
  # Under another name until it is complete, so that an interrupted start leaves nothing half made.
  rm -rf "$1/new"
  {
    "${as_postgres[@]}" "$postgres_bin/initdb" -D "$1/new" -U outhook --auth=trust -E UTF8 --locale=C &&
      "${as_postgres[@]}" "$postgres_bin/postgres" --single -D "$1/new" postgres <<<'CREATE DATABASE outhook'
  } >>"$dir/log/postgres.log" 2>&1 || die "initdb failed; see $dir/log/postgres.log"
  mv "$1/new" "$1/data"
}

# --write-recovery-conf makes it a standby that goes on where the copy ends.
copy_primary() {
  say "copying $POSTGRES_PRIMARY to $1"
  rm -rf "$1/new"
  "${as_postgres[@]}" "$postgres_bin/pg_basebackup" -D "$1/new" -h "${POSTGRES_PRIMARY%:*}" -p "${POSTGRES_PRIMARY#*:}" \
    -U outhook --checkpoint=fast --write-recovery-conf >>"$dir/log/postgres.log" 2>&1 ||
    die "pg_basebackup failed; see $dir/log/postgres.log"
  mv "$1/new" "$1/data"
}

# After a SIGKILL the backends linger for a moment, and a new server must not start beside them.
backends_left() { grep -qaE "^postgres: $(mark_of postgres):" /proc/[0-9]*/cmdline 2>/dev/null; }

await_postgres() {
  await postgres "$(postgres_port)"
  within 90 "$postgres_bin/pg_isready" -q -h 127.0.0.1 -p "$(postgres_port)" -U outhook ||
    die "Postgres accepts no connections; see $dir/log/postgres.log"
}

stop_postgres() {
  case $mode in
    fast) end postgres INT ;;
    immediate) end postgres QUIT ;;
    kill) end postgres KILL ;;
  esac
}
