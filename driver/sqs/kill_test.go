package sqs

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil { // the tests wait for polls and do little else
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	drivertest.Main(m, openKilled)
}

// openKilled makes the driver of each process of a test that kills.
func openKilled(namespace string) (driver.Driver, error) {
	return New(Options{
		Client: client(os.Getenv("TIDINGS_ELASTICMQ_URL"), nil), Namespace: namespace, FIFO: strings.HasPrefix(namespace, "fifo"),
		VisibilityTimeout: 3 * time.Second, PollWait: time.Second, RequestTimeout: slowAnswer,
	})
}

func TestRealKilledInstancesFIFO(t *testing.T)     { killInstances(t, "fifo") }
func TestRealKilledInstancesStandard(t *testing.T) { killInstances(t, "standard") }

func killInstances(t *testing.T, kind string) {
	t.Parallel()
	url := drivertest.Server(t, "TIDINGS_ELASTICMQ_URL")
	namespace := kind + newNamespace(t, url)
	t.Cleanup(func() { removeNamespace(t, client(url, nil), namespace) })
	drivertest.Killing{Open: openKilled, Namespace: namespace, Ordered: kind == "fifo"}.Run(t)
}
