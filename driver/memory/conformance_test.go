package memory_test

import (
	"os"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/memory"
)

// harness is the driver in one mode: a value is the whole broker.
func harness(options memory.Options) drivertest.Harness {
	// make mutants shortens it: what it breaks never comes.
	patience, _ := time.ParseDuration(os.Getenv("TIDINGS_TEST_PATIENCE"))
	return drivertest.Harness{Patience: patience, NewBroker: func(testing.TB) drivertest.Broker {
		var last *memory.Driver
		return drivertest.Broker{
			Open: func(testing.TB) driver.Driver {
				last = memory.New(&options)
				return last
			},
			DeadLetters: func(testing.TB) []driver.DeadLetter { return last.DeadLetters() },
		}
	}}
}

func TestConformance(t *testing.T) {
	t.Run("handlers run in Publish", func(t *testing.T) { drivertest.Run(t, harness(memory.Options{})) })
	t.Run("handlers run in workers", func(t *testing.T) { drivertest.Run(t, harness(memory.Options{Async: true})) })
}

func BenchmarkDriver(b *testing.B) { drivertest.RunBenchmarks(b, harness(memory.Options{})) }
