package streams

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
)

func TestMain(m *testing.M) { drivertest.Main(m, openKilled) }

// openKilled makes the driver of each process of a test that kills.
func openKilled(namespace string) (driver.Driver, error) {
	option, err := rueidis.ParseURL(os.Getenv("REDIS_URL"))
	if err != nil {
		return nil, err
	}
	return New(Options{Client: option, Namespace: namespace, LeaseTime: time.Second})
}

func TestRealKilledInstances(t *testing.T) {
	url := drivertest.Server(t, "REDIS_URL")
	namespace := fmt.Sprintf("killed-%d", time.Now().UnixNano())
	admin := plainClient(t, url)
	t.Cleanup(func() { removeNamespace(t, admin, namespace) })
	drivertest.Killing{Open: openKilled, Namespace: namespace, Ordered: true}.Run(t)
}
