# shellcheck shell=bash disable=SC2154 # state, parts and checkout are set by scripts/brokers, which reads this file
#
# Apache Kafka, run from its Maven packages: kafka (one node), kafka-secure (one node behind TLS, SASL and an authorizer) and
# kafka3 (three nodes, for tests that kill one).

broker kafka default KAFKA_BROKERS
broker kafka-secure default TIDINGS_KAFKA_SECURE_BROKERS TIDINGS_KAFKA_SECURE_CA TIDINGS_KAFKA_SECURE_PASSWORD TIDINGS_KAFKA_SECURE_STRANGER_PASSWORD
broker kafka3 named TIDINGS_KAFKA3_BROKERS TIDINGS_KAFKA3_PID_FILES

kafka_port=${TIDINGS_KAFKA_PORT:-29092}
kafka_controller_port=${TIDINGS_KAFKA_CONTROLLER_PORT:-29192}
kafka_secure_port=${TIDINGS_KAFKA_SECURE_PORT:-29102}
kafka_secure_controller_port=${TIDINGS_KAFKA_SECURE_CONTROLLER_PORT:-29202}
# The three nodes take this port and the two after it.
kafka3_port=${TIDINGS_KAFKA3_PORT:-29112}
kafka3_controller_port=${TIDINGS_KAFKA3_CONTROLLER_PORT:-29212}

kafka_files=$parts/kafka
kafka_libraries=$state/kafka-libraries-$(sha256sum <"$kafka_files/SHA256SUMS" | cut -c1-12)
kafka_probe=$state/bin/kafka-probe

kafka_version() { sed -n 's:.*<artifactId>kafka_2.13</artifactId><version>\(.*\)</version>.*:\1:p' "$kafka_files/pom.xml"; }
kafka_secure_version() { kafka_version; }
kafka3_version() { kafka_version; }

kafka_processes() { printf 'kafka\n'; }
kafka_secure_processes() { printf 'kafka-secure\n'; }
kafka3_processes() { printf 'kafka3-%s\n' 1 2 3; }

kafka_endpoint() { printf '127.0.0.1:%s\n' "$kafka_port"; }
kafka_secure_endpoint() { printf '127.0.0.1:%s\n' "$kafka_secure_port"; }
kafka3_endpoint() { printf '127.0.0.1:%s,127.0.0.1:%s,127.0.0.1:%s\n' "$kafka3_port" $((kafka3_port + 1)) $((kafka3_port + 2)); }

kafka_stand_in() { printf 'kfake, an in-process server\n'; }
kafka_secure_stand_in() { printf 'its tests were skipped\n'; }
kafka3_stand_in() { printf 'its tests were skipped; scripts/brokers up kafka3\n'; }

kafka_env() { export_line KAFKA_BROKERS "$(kafka_endpoint)"; }

kafka_secure_env() {
	export_line TIDINGS_KAFKA_SECURE_BROKERS "$(kafka_secure_endpoint)"
	export_line TIDINGS_KAFKA_SECURE_CA "$state/kafka-secure/authority.pem"
	export_line TIDINGS_KAFKA_SECURE_PASSWORD "$(<"$state/kafka-secure/app.password")"
	export_line TIDINGS_KAFKA_SECURE_STRANGER_PASSWORD "$(<"$state/kafka-secure/stranger.password")"
}

# A fault test kills the process in one of the files, which are in the order of the endpoints, and brings it back with
# `scripts/brokers up kafka3`.
kafka3_env() {
	export_line TIDINGS_KAFKA3_BROKERS "$(kafka3_endpoint)"
	export_line TIDINGS_KAFKA3_PID_FILES "$(pid_file kafka3-1),$(pid_file kafka3-2),$(pid_file kafka3-3)"
}

kafka_answers() { [[ -x $kafka_probe ]] && "$kafka_probe" -brokers "$(kafka_endpoint)" -within 2s 2>/dev/null; }
kafka3_answers() { [[ -x $kafka_probe ]] && "$kafka_probe" -brokers "$(kafka3_endpoint)" -count 3 -within 2s 2>/dev/null; }
kafka_secure_answers() { [[ -x $kafka_probe ]] && kafka_secure_probe -within 2s 2>/dev/null; }

kafka_secure_probe() {
	PROBE_PASSWORD=$(<"$state/kafka-secure/admin.password") "$kafka_probe" -brokers "$(kafka_secure_endpoint)" \
		-ca "$state/kafka-secure/authority.pem" -user admin "$@"
}

# kafka_install: Java, the jars and the probe, each only when it is missing.
kafka_install() {
	install_java Kafka
	fetch_jars kafka "$kafka_files" "$kafka_libraries" "version $(kafka_version), 43 MB"
	mkdir -p "$state/bin"
	# An older probe will do while go.mod is being edited.
	(cd "$checkout" && go build -o "$kafka_probe" ./scripts/brokers.d/kafka/probe) || [[ -x $kafka_probe ]] ||
		fail "the readiness probe of Kafka does not build"
}

# kafka_java PROCESS HEAP CLASS ARGUMENT...
kafka_java() {
	local process=$1 heap=$2
	shift 2
	# Java itself expands the star of the class path. Only the first compiler: a broker of tests starts twice as fast with it.
	# TIDINGS_KAFKA_JAVA_OPTIONS replaces that, for measurements: TIDINGS_KAFKA_JAVA_OPTIONS=-XX:+UseG1GC.
	# shellcheck disable=SC2206
	local options=(${TIDINGS_KAFKA_JAVA_OPTIONS:--XX:+UseSerialGC -XX:TieredStopAtLevel=1})
	kafka_command=(java "$(process_mark "$process")" -Xms128m "-Xmx$heap" "${options[@]}" -Djava.net.preferIPv4Stack=true
		"-Dlog4j2.configurationFile=$kafka_files/log4j2.properties" -cp "$kafka_libraries/*" "$@")
}

# kafka_properties NODE VOTERS COPIES MINIMUM DATA: what all flavours have in common.
# Short intervals make groups form and failures show within a test's patience; retention is looked at every five seconds.
kafka_properties() {
	local node=$1 voters=$2 copies=$3 minimum=$4 data=$5
	cat <<-PROPERTIES
		process.roles=broker,controller
		node.id=$node
		controller.quorum.voters=$voters
		controller.listener.names=CONTROLLER
		log.dirs=$data
		auto.create.topics.enable=false
		default.replication.factor=$copies
		min.insync.replicas=$minimum
		offsets.topic.num.partitions=5
		offsets.topic.replication.factor=$copies
		transaction.state.log.num.partitions=5
		transaction.state.log.replication.factor=$copies
		transaction.state.log.min.isr=$minimum
		share.coordinator.state.topic.num.partitions=5
		share.coordinator.state.topic.replication.factor=$copies
		share.coordinator.state.topic.min.isr=$minimum
		group.initial.rebalance.delay.ms=0
		group.min.session.timeout.ms=1000
		group.consumer.min.heartbeat.interval.ms=1000
		group.consumer.heartbeat.interval.ms=1000
		group.consumer.min.session.timeout.ms=5000
		group.consumer.session.timeout.ms=6000
		broker.session.timeout.ms=6000
		broker.heartbeat.interval.ms=1000
		log.retention.check.interval.ms=5000
	PROPERTIES
}

# kafka_node PROCESS FORMAT_ARGUMENT... formats the data once and starts the node. Properties come from the function named by
# kafka_describe, called with the data folder. Data is formatted beside its place and moved there, so a folder in its place is
# always a whole one, and it is never formatted again: that would lose what a killed broker had stored.
kafka_node() {
	local process=$1 folder=$state/$1 identity=${kafka_cluster_id:-}
	shift
	if process_pid "$process" >/dev/null; then return 0; fi
	mkdir -p "$folder"
	if [[ ! -d $folder/data ]]; then
		rm -rf "$folder/data.new"
		"$kafka_describe" "$folder/data.new" >"$folder/format.properties"
		kafka_java "$process" 128m kafka.tools.StorageTool format -t "$identity" -c "$folder/format.properties" "$@"
		"${kafka_command[@]}" </dev/null >"$folder/format.log" 2>&1 9>&- || {
			tail -n 5 "$folder/format.log" >&2
			fail "$process: its data folder could not be formatted (see $folder/format.log)"
		}
		rm -f "$folder/format.properties" "$folder/format.log"
		mv "$folder/data.new" "$folder/data"
	fi
	"$kafka_describe" "$folder/data" >"$folder/server.properties"
	kafka_java "$process" 512m kafka.Kafka "$folder/server.properties"
	start_process "$process" "${kafka_command[@]}"
}

# The id of a cluster is made once: 16 random bytes in the URL-safe alphabet, which must not begin with a dash.
kafka_identity() { # kafka_identity NAME
	local file=$state/$1.cluster-id
	if [[ ! -s $file ]]; then
		printf 'T%s\n' "$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=' | cut -c1-20)g" >"$file.new"
		mv "$file.new" "$file"
	fi
	cat "$file"
}

kafka_describe_one() {
	kafka_properties 1 "1@127.0.0.1:$kafka_controller_port" 1 1 "$1"
	cat <<-PROPERTIES
		listeners=PLAINTEXT://127.0.0.1:$kafka_port,CONTROLLER://127.0.0.1:$kafka_controller_port
		inter.broker.listener.name=PLAINTEXT
		listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
	PROPERTIES
}

kafka_start() {
	kafka_install
	if ! process_pid kafka >/dev/null; then
		require_free_port "$kafka_port" TIDINGS_KAFKA_PORT
		require_free_port "$kafka_controller_port" TIDINGS_KAFKA_CONTROLLER_PORT
	fi
	local kafka_describe=kafka_describe_one kafka_cluster_id
	kafka_cluster_id=$(kafka_identity kafka)
	kafka_node kafka
	"$kafka_probe" -brokers "$(kafka_endpoint)" -pid-files "$(pid_file kafka)" || {
		log_tail kafka
		fail "kafka did not become ready"
	}
}

# kafka-secure. Users: admin (may do everything, and is the broker's own name), app (granted everything), stranger (granted nothing).
# Each may come with PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512. The controller's listener is plain and on this machine only; who comes
# through it is called ANONYMOUS, which nobody on the other listener can be.
kafka_secure_start() {
	kafka_install
	kafka_secure_secrets
	if ! process_pid kafka-secure >/dev/null; then
		require_free_port "$kafka_secure_port" TIDINGS_KAFKA_SECURE_PORT
		require_free_port "$kafka_secure_controller_port" TIDINGS_KAFKA_SECURE_CONTROLLER_PORT
	fi
	local kafka_describe=kafka_describe_secure kafka_cluster_id user mechanism password arguments=()
	kafka_cluster_id=$(kafka_identity kafka-secure)
	for user in admin app stranger; do
		password=$(<"$state/kafka-secure/$user.password")
		for mechanism in SCRAM-SHA-256 SCRAM-SHA-512; do
			arguments+=(--add-scram "$mechanism=[name=$user,password=$password]")
		done
	done
	kafka_node kafka-secure "${arguments[@]}"
	# The grant is made again each time: it is the same rule, and a run that was killed in between may have left none.
	kafka_secure_probe -pid-files "$(pid_file kafka-secure)" -grant app || {
		log_tail kafka-secure
		fail "kafka-secure did not become ready"
	}
}

# kafka_secure_secrets makes the passwords once and the certificates for two years, again in their last week.
kafka_secure_secrets() {
	local folder=$state/kafka-secure user
	install_packages openssl openssl
	mkdir -p "$folder"
	for user in admin app stranger; do
		if [[ ! -s $folder/$user.password ]]; then
			openssl rand -hex 16 >"$folder/$user.password.new"
			mv "$folder/$user.password.new" "$folder/$user.password"
		fi
	done
	if process_pid kafka-secure >/dev/null; then return 0; fi # it has read them
	if [[ -s $folder/broker.pem ]] && openssl x509 -in "$folder/broker.pem" -noout -checkend 604800 >/dev/null 2>&1; then return 0; fi
	# One chain: `set -e` does not hold inside a list that || follows.
	(
		cd "$folder" &&
			openssl req -x509 -newkey rsa:2048 -nodes -days 730 -subj "/CN=Tidings test authority" \
				-addext "basicConstraints=critical,CA:TRUE" -keyout authority.key -out authority.pem &&
			openssl req -newkey rsa:2048 -nodes -subj "/CN=127.0.0.1" -keyout broker.key -out broker.request &&
			printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n' >broker.extensions &&
			openssl x509 -req -in broker.request -CA authority.pem -CAkey authority.key -CAcreateserial -days 730 \
				-extfile broker.extensions -out broker.certificate &&
			# Kafka reads the key only as PKCS#8, and key and certificates from one file.
			openssl pkcs8 -topk8 -nocrypt -in broker.key -out broker.key8 &&
			cat broker.key8 broker.certificate authority.pem >broker.pem.new &&
			mv broker.pem.new broker.pem &&
			rm -f broker.request broker.extensions broker.key broker.key8 broker.certificate
	) </dev/null >"$state/log/kafka-secure-certificates.log" 2>&1 || fail "the certificates for kafka-secure could not be made (see $state/log/kafka-secure-certificates.log)"
}

kafka_describe_secure() {
	local folder=$state/kafka-secure user plain
	plain="org.apache.kafka.common.security.plain.PlainLoginModule required username=\"admin\" password=\"$(<"$folder/admin.password")\""
	for user in admin app stranger; do
		plain+=" user_$user=\"$(<"$folder/$user.password")\""
	done
	kafka_properties 1 "1@127.0.0.1:$kafka_secure_controller_port" 1 1 "$1"
	cat <<-PROPERTIES
		listeners=SASL_SSL://127.0.0.1:$kafka_secure_port,CONTROLLER://127.0.0.1:$kafka_secure_controller_port
		inter.broker.listener.name=SASL_SSL
		listener.security.protocol.map=CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL
		sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
		sasl.mechanism.inter.broker.protocol=PLAIN
		listener.name.sasl_ssl.plain.sasl.jaas.config=$plain;
		listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
		listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
		ssl.keystore.type=PEM
		ssl.keystore.location=$folder/broker.pem
		ssl.truststore.type=PEM
		ssl.truststore.location=$folder/authority.pem
		authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
		super.users=User:admin;User:ANONYMOUS
	PROPERTIES
}

kafka3_start() {
	kafka_install
	local node kafka_describe kafka_cluster_id kafka3_node
	kafka_cluster_id=$(kafka_identity kafka3)
	kafka_describe=kafka_describe_three
	for node in 1 2 3; do
		if process_pid "kafka3-$node" >/dev/null; then continue; fi
		require_free_port $((kafka3_port + node - 1)) TIDINGS_KAFKA3_PORT
		require_free_port $((kafka3_controller_port + node - 1)) TIDINGS_KAFKA3_CONTROLLER_PORT
		kafka3_node=$node
		kafka_node "kafka3-$node"
	done
	"$kafka_probe" -brokers "$(kafka3_endpoint)" -count 3 -pid-files "$(pid_file kafka3-1),$(pid_file kafka3-2),$(pid_file kafka3-3)" || {
		for node in 1 2 3; do log_tail "kafka3-$node"; done
		fail "kafka3 did not become ready"
	}
}

kafka_describe_three() {
	local voters=1@127.0.0.1:$kafka3_controller_port,2@127.0.0.1:$((kafka3_controller_port + 1)),3@127.0.0.1:$((kafka3_controller_port + 2))
	kafka_properties "$kafka3_node" "$voters" 3 2 "$1"
	cat <<-PROPERTIES
		listeners=PLAINTEXT://127.0.0.1:$((kafka3_port + kafka3_node - 1)),CONTROLLER://127.0.0.1:$((kafka3_controller_port + kafka3_node - 1))
		inter.broker.listener.name=PLAINTEXT
		listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
	PROPERTIES
}
