//go:build unix

package guarantees

import (
	"flag"
	"testing"

	"github.com/tidings-go/tidings/driver/drivertest/faults"
)

var (
	long = flag.Bool("long", false, "every fault, at length, on brokers of the test's own")
	only = flag.String("driver", "", "only this driver of the table")
)

// TestFaults puts every driver through the faults: nothing that was published is
// lost on a durable one, order holds, and the inbox has no effect twice.
func TestFaults(t *testing.T) {
	t.Parallel()
	ledger, table := newLedger(t), &rows{}
	all := withProgram(worlds()...)
	if *long {
		all = ownServers(t, all)
	}
	t.Run("drivers", func(t *testing.T) {
		for _, world := range all {
			if *only != "" && world.Name != *only || !*long && (world.BrokerOnly || world.ClockOnly) {
				continue
			}
			t.Run(world.Name, func(t *testing.T) {
				t.Parallel()
				faults.Run(t, ledger, world, !*long, table.add)
			})
		}
	})
	table.write(t, "every driver under every fault", "")
}
