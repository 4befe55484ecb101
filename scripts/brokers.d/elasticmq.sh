# shellcheck shell=bash disable=SC2154 # state and the rest are set by scripts/brokers, which reads this file
#
# ElasticMQ, run from its Maven packages: SQS with FIFO queues and redrive as AWS has them, and no SNS. Everything is in memory.

broker elasticmq default TIDINGS_ELASTICMQ_URL

elasticmq_port=${TIDINGS_ELASTICMQ_PORT:-29324}
elasticmq_files=$parts/elasticmq
elasticmq_libraries=$state/elasticmq-libraries-$(sha256sum <"$elasticmq_files/SHA256SUMS" | cut -c1-12)

elasticmq_processes() { printf 'elasticmq\n'; }
elasticmq_endpoint() { printf 'http://127.0.0.1:%s\n' "$elasticmq_port"; }
elasticmq_version() { sed -n 's:.*<artifactId>elasticmq-server_2.13</artifactId><version>\(.*\)</version>.*:\1:p' "$elasticmq_files/pom.xml"; }
elasticmq_stand_in() { printf 'sqstest, an in-process server\n'; }
elasticmq_env() { export_line TIDINGS_ELASTICMQ_URL "$(elasticmq_endpoint)"; }
elasticmq_answers() { sqs_answers "$elasticmq_port"; }

elasticmq_start() {
	install_java ElasticMQ
	fetch_jars elasticmq "$elasticmq_files" "$elasticmq_libraries" "version $(elasticmq_version), 37 MB"
	if ! process_pid elasticmq >/dev/null; then
		require_free_port "$elasticmq_port" TIDINGS_ELASTICMQ_PORT
		start_process elasticmq java "$(process_mark elasticmq)" -Xmx192m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
			-Djava.net.preferIPv4Stack=true "-Dlogback.configurationFile=$elasticmq_files/logback.xml" \
			-Drest-sqs.bind-hostname=127.0.0.1 "-Drest-sqs.bind-port=$elasticmq_port" \
			-Dnode-address.host=127.0.0.1 "-Dnode-address.port=$elasticmq_port" \
			-Daws.region=us-east-1 -Daws.accountId=000000000000 -cp "$elasticmq_libraries/*" org.elasticmq.server.Main
	fi
	await_sqs elasticmq "$elasticmq_port"
}

# sqs_answers PORT: a server that speaks SQS answers a real request. The request is written by hand: curl may be missing.
sqs_answers() {
	local line
	port_open "$1" || return 1
	line=$(
		exec 3<>"/dev/tcp/127.0.0.1/$1" 2>/dev/null || exit 1
		printf 'POST / HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nX-Amz-Target: AmazonSQS.ListQueues\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}' "$1" >&3
		IFS= read -r -t 5 answer <&3
		printf '%s' "$answer"
	) 2>/dev/null || return 1
	[[ $line == "HTTP/1.1 200"* ]]
}

await_sqs() { # await_sqs PROCESS PORT
	local i
	for ((i = 0; i < 300; i++)); do
		if sqs_answers "$2"; then return 0; fi
		process_pid "$1" >/dev/null || break
		sleep 0.1
	done
	log_tail "$1"
	fail "$1 did not become ready"
}
