# shellcheck shell=bash disable=SC2154 # state and the rest are set by scripts/brokers, which reads this file
#
# fauxqs, run with Node from its package and a lock file: SQS and SNS, for fan-out. Everything is in memory.

broker fauxqs default TIDINGS_FAUXQS_URL

fauxqs_port=${TIDINGS_FAUXQS_PORT:-29325}
fauxqs_files=$parts/fauxqs
fauxqs_folder=$state/fauxqs-$(cat "$fauxqs_files/package-lock.json" "$fauxqs_files/server.mjs" | sha256sum | cut -c1-12)

fauxqs_processes() { printf 'fauxqs\n'; }
fauxqs_endpoint() { printf 'http://127.0.0.1:%s\n' "$fauxqs_port"; }
fauxqs_version() { sed -n 's/.*"fauxqs": "\(.*\)".*/\1/p' "$fauxqs_files/package.json"; }
fauxqs_stand_in() { printf 'sqstest, an in-process server\n'; }
fauxqs_env() { export_line TIDINGS_FAUXQS_URL "$(fauxqs_endpoint)"; }
fauxqs_answers() { sqs_answers "$fauxqs_port"; }

fauxqs_start() {
	install_node
	if [[ ! -d $fauxqs_folder ]]; then
		say "fauxqs: fetching version $(fauxqs_version), 43 MB"
		rm -rf "$fauxqs_folder.new"
		mkdir -p "$fauxqs_folder.new" "$state/log"
		cp "$fauxqs_files"/{package.json,package-lock.json,server.mjs} "$fauxqs_folder.new"
		# The lock file has a checksum of every package; no script of any of them is run.
		(cd "$fauxqs_folder.new" && timeout 300 npm ci --ignore-scripts --no-audit --no-fund) </dev/null >"$state/log/fauxqs-fetch.log" 2>&1 9>&- || {
			tail -n 5 "$state/log/fauxqs-fetch.log" >&2
			fail "fauxqs $(fauxqs_version) could not be fetched with npm (see $state/log/fauxqs-fetch.log)"
		}
		mv "$fauxqs_folder.new" "$fauxqs_folder"
	fi
	if ! process_pid fauxqs >/dev/null; then
		require_free_port "$fauxqs_port" TIDINGS_FAUXQS_PORT
		start_process fauxqs node "$fauxqs_folder/server.mjs" "$fauxqs_port" "$(process_mark fauxqs)"
	fi
	await_sqs fauxqs "$fauxqs_port"
}
