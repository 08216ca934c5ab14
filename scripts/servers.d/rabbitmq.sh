# shellcheck shell=bash
# Sourced by scripts/servers. How RabbitMQ is configured, started and stopped, alone or as a node of a cluster.

# node_name BASE: the name of the node whose block of ports begins there.
node_name() { echo "outhook${RABBITMQ_CLUSTER:+-$1}@localhost"; }

# name_rabbitmq HOME: what the server and its tools must know alike, to find each other.
name_rabbitmq() {
  as_rabbitmq+=(
    HOME="$1" # holds the Erlang cookie
    ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT="$(epmd_port)"
    RABBITMQ_NODENAME="$(node_name "$base")" RABBITMQ_CONF_ENV_FILE="$1/rabbitmq-env.conf"
  )
}

launch_rabbitmq() {
  local home environment
  require_free "$(amqp_port)" "$(management_port)" "$(distribution_port)"
  home=$(make_home rabbitmq rabbitmq)
  write_rabbitmq_configuration "$home"
  name_rabbitmq "$home"
  if [[ $cluster != "$dir" ]]; then cp -p "$(readlink -f "$cluster/rabbitmq")/.erlang.cookie" "$home/"; fi
  environment=(
    RABBITMQ_DIST_PORT="$(distribution_port)"
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}'
    RABBITMQ_CONFIG_FILE="$home/rabbitmq.conf" RABBITMQ_ADVANCED_CONFIG_FILE="$home/advanced.config"
    RABBITMQ_ENABLED_PLUGINS_FILE="$home/enabled_plugins"
    RABBITMQ_MNESIA_BASE="$home/mnesia" RABBITMQ_LOG_BASE="$home/log" RABBITMQ_SCHEMA_DIR="$home/schema"
    # Makes the start script become the server instead of guarding it, so that its process id is
    # the server's.
    RABBITMQ_ALLOW_INPUT=true
  )
  # Erlang would start a port mapper by itself, but one whose process id nobody knows.
  if [[ $cluster == "$dir" ]] && ! alive epmd; then
    require_free "$(epmd_port)"
    launch epmd "${as_rabbitmq[@]}" epmd -address 127.0.0.1 -port "$(epmd_port)"
    within 10 listening "$(epmd_port)" || die "epmd does not start; see $dir/log/epmd.log"
  fi
  say "starting RabbitMQ on port $(amqp_port) (this takes about ten seconds)"
  launch rabbitmq "${as_rabbitmq[@]}" "${environment[@]}" "$rabbitmq_server" \
    -noinput -outhook_port "$(amqp_port)"
}

# Passwords like these are no secret, and need not be: the servers listen on loopback only, and trust it.
write_rabbitmq_configuration() {
  RABBITMQ_ADMIN=guest:guest RABBITMQ_RELAY=outhook_relay:outhook_relay RABBITMQ_WORKER=outhook_worker:outhook_worker \
    "$here/rabbitmq-users" >"$1/users.json"
  cat >"$1/rabbitmq.conf" <<LINES
listeners.tcp.1 = 127.0.0.1:$(amqp_port)
management.tcp.ip = 127.0.0.1
management.tcp.port = $(management_port)
vm_memory_high_watermark.absolute = 512MB
disk_free_limit.absolute = 50MB
load_definitions = $1/users.json
log.console = true
log.file = false
${RABBITMQ_CONF_EXTRA:-}
LINES
  if [[ -n ${RABBITMQ_CLUSTER:-} ]]; then
    cat >>"$1/rabbitmq.conf" <<LINES
cluster_formation.peer_discovery_backend = classic_config
cluster_formation.classic_config.nodes.1 = $(node_name "$(<"$cluster/ports")")
cluster_partition_handling = pause_minority
LINES
  fi
  echo '[rabbitmq_management].' >"$1/enabled_plugins"
  echo '[].' >"$1/advanced.config"
  : >"$1/rabbitmq-env.conf"
}

# The broker opens its AMQP port last, when everything else is ready.
await_rabbitmq() { await rabbitmq "$(amqp_port)" "$(management_port)"; }

stop_rabbitmq() {
  case $mode in
    fast) end rabbitmq TERM ;;
    *) end rabbitmq KILL ;;
  esac
  # The other nodes of a cluster go on with it.
  if [[ -z ${RABBITMQ_CLUSTER:-} ]]; then end epmd KILL; fi
}
