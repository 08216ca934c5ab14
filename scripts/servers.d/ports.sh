# shellcheck shell=bash
# Sourced by scripts/servers. Which ports a pair of servers has, and the file that says how to connect.

postgres_port() { echo $((base)); }
amqp_port() { echo $((base + 1)); }
management_port() { echo $((base + 2)); }
distribution_port() { echo $((base + 3)); }
epmd_port() { echo $(($(<"$cluster/ports") + 4)); }

choose_ports() {
  if [[ -s $dir/ports ]]; then base=$(<"$dir/ports"); return; fi
  # Ports above 60999 are out of the way of those that the kernel gives to clients.
  for base in $base_port $(shuf -i 6100-6499 | sed 's/$/0/'); do
    if block_is_free && reserve_block; then
      echo "$base" >"$dir/ports"
      return
    fi
  done
  die "no block of free ports from 61000 to 64999"
}

block_is_free() {
  local port
  for port in $(seq "$base" $((base + 4))); do
    if listening "$port"; then return 1; fi
  done
}

# Starts at the same moment must not choose the same block. The lock is never given back: the
# servers inherit it, so it ends with the last of them, and with `hold`.
reserve_block() {
  local locks=/tmp/outhook-ports-$EUID
  mkdir -p "$locks"
  exec {block_lock}>"$locks/$base"
  flock -n "$block_lock" || { exec {block_lock}>&-; return 1; }
}

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

write_env() {
  cat >"$dir/env.new" <<LINES
DATABASE_URL=postgres://outhook@127.0.0.1:$(postgres_port)/outhook
RABBITMQ_URL=amqp://guest:guest@127.0.0.1:$(amqp_port)/%2f
RELAY_RABBITMQ_URL=amqp://outhook_relay:outhook_relay@127.0.0.1:$(amqp_port)/%2f
WORKER_RABBITMQ_URL=amqp://outhook_worker:outhook_worker@127.0.0.1:$(amqp_port)/%2f
RABBITMQ_MANAGEMENT_URL=http://guest:guest@127.0.0.1:$(management_port)
RABBITMQ_NODE=$(node_name "$base")
POSTGRES_PID_FILE=$dir/postgres.pid
RABBITMQ_PID_FILE=$dir/rabbitmq.pid
POSTGRES_BIN=$postgres_bin
LINES
  mv "$dir/env.new" "$dir/env"
}
