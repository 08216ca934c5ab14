# shellcheck shell=bash
# Sourced by scripts/servers. How a server is started, found again, waited for and ended, whichever it is.

# launch NAME COMMAND…: starts a server that outlives this script and its terminal.
launch() {
  local name=$1
  shift
  setsid "$@" >>"$dir/log/$name.log" 2>&1 </dev/null {directory_lock}<&- &
  echo $! >"$dir/$name.pid"
  disown $!
}

# A zombie, which only waits for its parent to take notice, does not count.
running() { grep -qs '^State:.[^ZX]' "/proc/$1/status"; }

command_line() { tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null || true; }

# What the command line of each process says, and no other's. A process id alone proves nothing:
# after a reboot it may be someone else's.
mark_of() {
  case $1 in
    postgres) echo "outhook-$(postgres_port)" ;;
    rabbitmq) echo "-outhook_port $(amqp_port)" ;;
    epmd) echo "-port $(epmd_port)" ;;
  esac
}

alive() {
  local pid
  [[ -s $dir/$1.pid ]] || return 1
  pid=$(<"$dir/$1.pid")
  running "$pid" && [[ $(command_line "$pid") == *"$(mark_of "$1")"* ]]
}

# A killed process loses its command line first, and its ports a moment later.
dying() {
  [[ -s $dir/$1.pid ]] && running "$(<"$dir/$1.pid")" && [[ -z $(command_line "$(<"$dir/$1.pid")") ]]
}

# end NAME SIGNAL: sends the signal and waits until the process is gone.
end() {
  local pid
  if ! alive "$1"; then return; fi
  pid=$(<"$dir/$1.pid")
  kill -s "$2" "$pid" 2>/dev/null || true
  kill -s CONT "$pid" 2>/dev/null || true # a paused process does not hear the signal
  if ! within 30 not running "$pid"; then
    say "$1 did not stop within 30 seconds: killing it"
    kill -s KILL "$pid" 2>/dev/null || true
    within 10 not running "$pid" || die "$1 (process $pid) cannot be killed"
  fi
  rm -f "$dir/$1.pid"
}

not() { ! "$@"; }

# within SECONDS COMMAND…: repeats the command until it succeeds.
within() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS <= deadline)) || return 1
    sleep 0.05
  done
}

# await NAME PORT…: waits until the server answers on each port.
await() {
  local name=$1 port
  shift
  for port in "$@"; do
    within 90 answers_or_died "$name" "$port" || true
    if running "$(<"$dir/$name.pid")" && listening "$port"; then continue; fi
    tail -n 20 "$dir/log/$name.log" >&2
    die "$name does not answer on port $port; the end of its log is above, all of it in $dir/log/$name.log"
  done
}

answers_or_died() { listening "$2" || ! running "$(<"$dir/$1.pid")"; }

# A server that was killed a moment ago may listen a little longer: its first thread ends before its others.
require_free() {
  local port
  for port in "$@"; do
    within 5 not listening "$port" ||
      die "port $port is taken by another program: stop that, or remove $dir/ports to get other ports"
  done
}

# make_home NAME USER: makes the directory of a server's data, and prints its real path.
make_home() {
  local name=$1 user=$2 home=$dir/$1
  local -n run_as=as_$name
  if [[ ! -d $home ]]; then
    # A user without access to DIR, such as postgres below root's home, gets a place of its own.
    if "${run_as[@]}" test -x "$dir"; then mkdir "$home"; else
      ln -sfn "$(mktemp -d "/var/tmp/outhook-$name-XXXXXX")" "$home"
    fi
    if ((EUID == 0)); then chown -R "$user:" "$home/"; fi
  fi
  readlink -f "$home"
}
