# shellcheck shell=bash disable=SC2154 # state and the rest are set by scripts/brokers, which reads this file
#
# PostgreSQL and MariaDB from the system's packages, each without fsync: tests kill processes, not machines. Neither runs as root;
# started by root, they run as the users that their packages made, with data in a folder that these can reach.

broker postgres default TIDINGS_POSTGRES_URL
broker mariadb default TIDINGS_MYSQL_DSN

postgres_port=${TIDINGS_POSTGRES_PORT:-29432}
mariadb_port=${TIDINGS_MYSQL_PORT:-29306}
stop_signal[postgres]=INT # TERM would wait until every client has gone

database_folder() { # database_folder NAME: where its data is
	if [[ $(id -u) == 0 ]]; then
		printf '/var/tmp/tidings-%s-%s\n' "$1" "$(printf '%s' "$state" | sha256sum | cut -c1-12)"
	else
		printf '%s/%s\n' "$state" "$1"
	fi
}

# as_user USER COMMAND...: as that user when we are root. It replaces the process, so that a pid stays what it is.
as_user() {
	if [[ $(id -u) == 0 ]]; then
		printf '%s\n' setpriv --reuid "$1" --regid "$1" --clear-groups -- "${@:2}"
	else
		printf '%s\n' "${@:2}"
	fi
}

database_up() { # database_up NAME: waits until it answers
	local i
	for ((i = 0; i < 300; i++)); do
		if call "$1" answers; then return 0; fi
		process_pid "$1" >/dev/null || break
		sleep 0.1
	done
	log_tail "$1"
	fail "$1 did not become ready"
}

# PostgreSQL

postgres_programs() { # the folder of the newest server
	local found
	found=$(find /usr/lib/postgresql /usr/local/pgsql /opt/homebrew/opt/postgresql* -maxdepth 3 -name postgres -path '*/bin/*' 2>/dev/null | sort -V | tail -1)
	dirname "${found:-/usr/lib/postgresql/15/bin/postgres}"
}
postgres_processes() { printf 'postgres\n'; }
postgres_endpoint() { printf 'postgres://postgres@127.0.0.1:%s/postgres?sslmode=disable\n' "$postgres_port"; }
postgres_version() { "$(postgres_programs)/postgres" --version 2>/dev/null | sed -n 's/.*) \([^ ]*\).*/\1/p'; }
postgres_stand_in() { printf 'its tests were skipped\n'; }
postgres_env() { export_line TIDINGS_POSTGRES_URL "$(postgres_endpoint)"; }
postgres_answers() { "$(postgres_programs)/pg_isready" --quiet --host 127.0.0.1 --port "$postgres_port" --timeout 2 2>/dev/null; }

postgres_start() {
	local programs folder command
	install_packages "$(postgres_programs)/postgres" postgresql
	programs=$(postgres_programs)
	if process_pid postgres >/dev/null; then
		database_up postgres
		return
	fi
	require_free_port "$postgres_port" TIDINGS_POSTGRES_PORT
	folder=$(database_folder postgres)
	if [[ ! -s $folder/data/PG_VERSION ]]; then
		rm -rf "$folder"
		mkdir -p "$folder" "$state/log"
		if [[ $(id -u) == 0 ]]; then chown postgres: "$folder"; fi
		mapfile -t command < <(as_user postgres "$programs/initdb" -D "$folder/data" -U postgres -A trust --no-sync --locale=C -E UTF8)
		(cd / && "${command[@]}") >"$state/log/postgres-initdb.log" 2>&1 9>&- || fail "initdb failed (see $state/log/postgres-initdb.log)"
	fi
	mapfile -t command < <(as_user postgres "$programs/postgres" -D "$folder/data" -p "$postgres_port" -c listen_addresses=127.0.0.1 \
		-c unix_socket_directories= -c wal_level=logical -c fsync=off -c max_connections=800 -c "tidings.mark=$(process_mark postgres)")
	(cd / && start_process postgres "${command[@]}")
	database_up postgres
}

# MariaDB

mariadb_processes() { printf 'mariadb\n'; }
mariadb_endpoint() { printf 'root@tcp(127.0.0.1:%s)/\n' "$mariadb_port"; }
mariadb_version() { mariadbd --version 2>/dev/null | sed -n 's/.*Ver \([^ ]*\).*/\1/p'; }
mariadb_stand_in() { printf 'its tests were skipped\n'; }
mariadb_env() { export_line TIDINGS_MYSQL_DSN "$(mariadb_endpoint)"; }
mariadb_answers() { mariadb --no-defaults --host 127.0.0.1 --port "$mariadb_port" --user root --connect-timeout 2 --execute 'SELECT 1' >/dev/null 2>&1; }

mariadb_start() {
	local folder
	install_packages mariadbd mariadb-server
	if process_pid mariadb >/dev/null; then
		database_up mariadb
		return
	fi
	require_free_port "$mariadb_port" TIDINGS_MYSQL_PORT
	folder=$(database_folder mariadb)
	local user=()
	if [[ $(id -u) == 0 ]]; then user=(--user=mysql); fi
	if [[ ! -s $folder/data/ibdata1 ]]; then
		rm -rf "$folder"
		mkdir -p "$folder" "$state/log"
		chmod 755 "$folder"
		if [[ $(id -u) == 0 ]]; then chown mysql: "$folder"; fi
		(cd / && mariadb-install-db --no-defaults "${user[@]}" --datadir="$folder/data" --auth-root-authentication-method=normal --skip-test-db) \
			>"$state/log/mariadb-install.log" 2>&1 9>&- || fail "mariadb-install-db failed (see $state/log/mariadb-install.log)"
	fi
	(cd / && start_process mariadb mariadbd --no-defaults "${user[@]}" --datadir="$folder/data" --bind-address=127.0.0.1 --port="$mariadb_port" \
		--socket="$folder/socket" --pid-file="$folder/pid" --innodb-flush-log-at-trx-commit=2 --max-connections=300 \
		"--loose-mark=$(process_mark mariadb)")
	database_up mariadb
}
