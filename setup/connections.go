package setup

import (
	"context"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
)

// What connections that this package opens are told, so that one which died without
// a word is noticed on both of its ends (docs/operations.md has the reasons).
const (
	dialTime = 5 * time.Second
	// A connection whose other end is gone is given up after about ten seconds:
	// the system asks when it was idle for keepIdle, keepCount times.
	keepIdle     = 5 * time.Second
	keepInterval = 2 * time.Second
	keepCount    = 3
	// unacknowledged is how long what was written may stay without a sign of the
	// other end, where the system can be told.
	unacknowledged = 10 * time.Second
	// pingTime is how long an idle connection may take to say that it is there.
	pingTime = 2 * time.Second
)

func dialer() *net.Dialer {
	return &net.Dialer{
		Timeout:         dialTime,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepIdle, Interval: keepInterval, Count: keepCount},
		Control:         userTimeout(unacknowledged),
	}
}

// tunePostgres makes the client's end notice. What the address says itself stays.
func tunePostgres(config *pgx.ConnConfig) {
	if config.ConnectTimeout == 0 || config.ConnectTimeout > 2*dialTime { // the client's own is two minutes
		config.ConnectTimeout = 2 * dialTime
	}
	config.DialFunc = dialer().DialContext
}

// tuneServer makes the server's end notice. It changes what nobody has set for the
// connection, its user or its database. It is no parameter of the start, which
// poolers refuse.
func tuneServer(ctx context.Context, connection *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	_, err := connection.Exec(ctx, `SELECT set_config(s.name, v.value, false) FROM pg_settings s JOIN (VALUES
		('idle_in_transaction_session_timeout', '20000'), ('tcp_keepalives_idle', '5'), ('tcp_keepalives_interval', '2'),
		('tcp_keepalives_count', '3'), ('tcp_user_timeout', '10000')) AS v (name, value) ON v.name = s.name
		WHERE s.source IN ('default', 'configuration file')`)
	return err
}

// mysqlParameters are what the server is told: how long it keeps a connection that
// says nothing, and on MariaDB a transaction in which nothing happens. A handler
// that may take longer needs more of both.
func mysqlParameters() map[string]string {
	return map[string]string{"wait_timeout": "60 /*M!100300 , idle_transaction_timeout = 60 */"}
}

const (
	// mysqlAnswer bounds each read and write of a connection of MySQL: its client
	// commits and rolls back without a context.
	mysqlAnswer = 3 * time.Minute
	// mysqlIdle is less than the server's wait_timeout, so that the pool does not
	// offer what the server has closed.
	mysqlIdle = 30 * time.Second
)
