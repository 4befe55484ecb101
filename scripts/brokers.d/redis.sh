# shellcheck shell=bash disable=SC2154 # state and the rest are set by scripts/brokers, which reads this file
#
# Redis from the system's packages: one server without persistence. Tests of durability, and those that restart, flush or build a
# cluster, start servers of their own from the same program.

broker redis default REDIS_URL

redis_port=${TIDINGS_REDIS_PORT:-29379}

redis_processes() { printf 'redis\n'; }
redis_endpoint() { printf 'redis://127.0.0.1:%s\n' "$redis_port"; }
redis_version() { redis-server --version 2>/dev/null | sed -n 's/.* v=\([^ ]*\) .*/\1/p'; }
redis_stand_in() { printf 'miniredis, an in-process server\n'; }
redis_env() { export_line REDIS_URL "$(redis_endpoint)"; }
redis_answers() { [[ $(redis-cli -h 127.0.0.1 -p "$redis_port" ping 2>/dev/null) == PONG ]]; }

redis_start() {
	install_packages redis-server redis-server
	local i
	if ! process_pid redis >/dev/null; then
		require_free_port "$redis_port" TIDINGS_REDIS_PORT
		mkdir -p "$state/redis"
		# The title of the process would hide its arguments; syslog-ident does nothing here and carries the mark.
		start_process redis redis-server --port "$redis_port" --bind 127.0.0.1 --dir "$state/redis" --save '' --appendonly no \
			--enable-debug-command local --set-proc-title no --syslog-ident "$(process_mark redis)"
	fi
	for ((i = 0; i < 100; i++)); do
		if redis_answers; then return 0; fi
		sleep 0.1
	done
	log_tail redis
	fail "redis did not become ready"
}
