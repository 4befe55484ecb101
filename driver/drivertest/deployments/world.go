package deployments

import (
	"context"
	"testing"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

// Payload is the payload of every event here.
type Payload struct {
	Number int `json:"number"`
}

// World is one driver with its broker, and the database into which handlers write.
type World struct {
	// Name stands at the head of a column.
	Name string
	// Prepare makes an empty place for one trial, and cleans up with t.Cleanup.
	Prepare func(t testing.TB) Site
	// Nameless says that the driver keeps nothing under the name of a subscription, so
	// that nobody can know which instances are alive under it.
	Nameless bool
	// Not says, by the name of a change, why it cannot exist here.
	Not map[string]string
}

// Site is the place of one trial.
type Site struct {
	// Open makes what one instance needs. Every call makes a driver value and store
	// handles of its own, as another process would have them.
	Open func(ctx context.Context) (*Parts, error)
	// Effects counts, by event id, the rows that handlers wrote.
	Effects func(ctx context.Context) (map[string]int, error)
}

// Parts is what an instance is made of.
type Parts struct {
	// Driver is closed by the bus.
	Driver driver.Driver
	// Options are those of the bus. Logger and Observers are set by the suite.
	Options tidings.Options
	// React makes a reaction that writes one row with the event's id in the
	// transaction of an inbox.
	React func(contract tidings.Contract[Payload]) tidings.Reaction
	// Close releases the handles, after the bus.
	Close func()
}
