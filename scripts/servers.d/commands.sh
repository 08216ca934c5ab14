# shellcheck shell=bash
# Sourced by scripts/servers. The commands but install and start.

stop() {
  local server
  base=$(<"$dir/ports")
  for server in "${servers[@]}"; do
    if alive "$server"; then say "stopping $server"; fi
    "stop_$server"
  done
}

wipe() {
  local server home
  stop
  for server in "${servers[@]}"; do
    home=$(readlink -f "$dir/$server")
    rm -rf -- "$home" "${dir:?}/$server" "$dir/log/$server.log"
  done
}

status() {
  local server all_run=0
  base=$(<"$dir/ports")
  for server in "${servers[@]}"; do
    if alive "$server"; then
      echo "$server is running, process $(<"$dir/$server.pid")"
    else
      echo "$server is not running"
      all_run=1
    fi
  done
  return "$all_run"
}

# Only the processes that answer for the servers: Postgres' sessions go on.
pause() { signal STOP; }
resume() { signal CONT; }

signal() {
  local server
  base=$(<"$dir/ports")
  for server in "${servers[@]}"; do
    alive "$server" || die "$server is not running"
    kill -s "$1" "$(<"$dir/$server.pid")"
  done
}

# administer TOOL: what RabbitMQ's own tool of that name does.
administer() {
  base=$(<"$dir/ports")
  servers=(rabbitmq)
  find_programs
  name_rabbitmq "$(readlink -f "$dir/rabbitmq")"
  "${as_rabbitmq[@]}" "$(dirname "$rabbitmq_server")/$1" "${rest[@]}"
}

hold() {
  [[ -z $(ls -A "$dir") ]] || die "$dir is not empty, and hold would remove it at the end: name a new directory"
  trap release EXIT
  trap 'exit 0' HUP INT TERM
  exclusively start
  cat "$dir/env"
  echo READY
  while read -r _; do :; done
}

release() {
  trap '' HUP INT TERM
  mode=immediate
  if [[ -s $dir/ports ]]; then wipe; end epmd KILL; fi
  rm -rf -- "$dir"
}
