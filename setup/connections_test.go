package setup_test

import (
	"context"
	"strings"
	"testing"

	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/setup"
)

// A transaction of a process that died without a word is ended by the server, and
// what the address says itself is left as it is.
func TestTheServerIsToldToNoticeDeadConnections(t *testing.T) {
	url := drivertest.Server(t, "TIDINGS_POSTGRES_URL")
	show := func(url, name string) (value string) {
		db, err := setup.OpenSQL(setup.Config{Driver: "postgres", DatabaseURL: url})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		if err := db.QueryRowContext(context.Background(), "SHOW "+name).Scan(&value); err != nil {
			t.Fatal(err)
		}
		return value
	}
	if got := show(url, "idle_in_transaction_session_timeout"); got != "20s" {
		t.Errorf("idle_in_transaction_session_timeout is %s", got)
	}
	if got := show(url, "tcp_keepalives_idle"); got != "5" {
		t.Errorf("tcp_keepalives_idle is %s", got)
	}
	separator := "?"
	if strings.Contains(url, "?") {
		separator = "&"
	}
	if got := show(url+separator+"idle_in_transaction_session_timeout=7000", "idle_in_transaction_session_timeout"); got != "7s" {
		t.Errorf("the address says 7 seconds, and it is %s", got)
	}
}
