package driver

import (
	"context"
	"fmt"
)

// Severity says how bad a [Finding] is.
type Severity string

const (
	// Broken: something that was declared does not work, or loses events.
	Broken Severity = "broken"
	// Weak: it works, and keeps less than is promised.
	Weak Severity = "weak"
	// Note: worth knowing, and nothing has to be done.
	Note Severity = "note"
)

// Finding is one difference between what was declared or promised and what there
// is.
type Finding struct {
	Severity Severity `json:"severity"`
	// Check is the stable name of what was looked at: "kafka-topic-missing".
	Check string `json:"check"`
	// Subject is what it is about: "topic events.identity-user-created".
	Subject string `json:"subject"`
	// What is there, why it matters, and how it is mended: a sentence each,
	// without secrets.
	What string `json:"what"`
	Why  string `json:"why"`
	Fix  string `json:"fix"`
}

// String is one line for logs.
func (f Finding) String() string {
	return fmt.Sprintf("%s: %s: %s; %s", f.Subject, f.What, f.Why, f.Fix)
}

// InspectOptions says what an inspection minds. The zero value has the defaults.
type InspectOptions struct {
	// MaxLag is how many events a subscription that runs may be behind before that
	// is a finding. Defaults to 1 000. One that nobody runs may not be behind at
	// all.
	MaxLag int64
}

// DefaultMaxLag is the default of [InspectOptions].
const DefaultMaxLag = 1000

// Inspector is implemented by drivers and stores that can compare what was
// declared with what there is, and live settings with what they promise. It
// changes nothing, and may be called at once.
type Inspector interface {
	// Inspect returns what it finds, broken things first. The error is for what
	// could not be looked at; what was found until then is returned with it.
	Inspect(ctx context.Context, topology Topology, options InspectOptions) ([]Finding, error)
}
