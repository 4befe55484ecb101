// Package outage tells a subscription's sink when its broker does not answer,
// and when it does again.
package outage

import (
	"sync"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// Outage watches the answers of one broker. All methods may be called at once.
type Outage struct {
	sink  driver.Sink
	after time.Duration
	text  string

	mu     sync.Mutex
	since  time.Time // of the first failure with no answer after it, or zero
	told   bool
	closed bool
}

// New makes an Outage that reports, with the text, what lasts longer than after.
func New(sink driver.Sink, after time.Duration, text string) *Outage {
	return &Outage{sink: sink, after: after, text: text}
}

// Failed says that the broker did not answer.
func (o *Outage) Failed(err error) {
	now := time.Now()
	o.mu.Lock()
	if o.since.IsZero() {
		o.since = now
	}
	tell := !o.told && !o.closed && now.Sub(o.since) >= o.after
	o.told = o.told || tell
	o.mu.Unlock()
	if tell {
		o.sink.Report(driver.Report{Kind: driver.ReportOutage, Err: err, Text: o.text})
	}
}

// Answered says that it did.
func (o *Outage) Answered() {
	o.mu.Lock()
	since, told := o.since, o.told && !o.closed
	o.since, o.told = time.Time{}, false
	o.mu.Unlock()
	if told {
		o.sink.Report(driver.Report{Kind: driver.ReportRecovered, Duration: time.Since(since)})
	}
}

// Close ends the reports.
func (o *Outage) Close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
}
