// Package outage tells a subscription's sink when its broker does not answer,
// and when it does again.
package outage

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// Outage watches the answers of one broker. What is asked of it are several
// concerns, such as "read" and "positions": an answer to one says nothing about the
// others. All methods may be called at once.
type Outage struct {
	sink     driver.Sink
	after    time.Duration
	patience time.Duration
	text     string

	mu       sync.Mutex
	concerns map[string]*concern
	began    time.Time // of the outage that was told, or zero
	timer    *time.Timer
	closed   bool
}

// concern is what is asked for one purpose.
type concern struct {
	since    time.Time // of the first question or failure without an answer after it, or zero
	failure  error     // the last one, nil while there was none since
	underWay int
}

// New makes an Outage that reports, with the text, failures that go on for longer
// than after.
func New(sink driver.Sink, after time.Duration, text string) *Outage {
	return &Outage{sink: sink, after: after, text: text, concerns: make(map[string]*concern)}
}

// Patience makes it report too what was asked and has no answer for so long. It is
// called before anything else.
func (o *Outage) Patience(patience time.Duration) { o.patience = patience }

func (o *Outage) concern(name string) *concern {
	c := o.concerns[name]
	if c == nil {
		c = &concern{}
		o.concerns[name] = c
	}
	return c
}

// Ask says that something is asked. end is told how that ended: nil is an answer,
// and a context that was cancelled says nothing, because the process stops.
func (o *Outage) Ask(name string) (end func(error)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := o.concern(name)
	if c.since.IsZero() {
		c.since = time.Now()
	}
	c.underWay++
	o.watch()
	return func(err error) {
		o.mu.Lock()
		c.underWay--
		stopped := errors.Is(err, context.Canceled)
		if stopped && c.failure == nil && c.underWay == 0 {
			c.since = time.Time{}
		}
		o.mu.Unlock()
		switch {
		case stopped:
		case err != nil:
			o.FailedAt(name, err)
		default:
			o.AnsweredAt(name)
		}
	}
}

// watch looks at what is under way, for as long as something is. The caller holds
// the lock.
func (o *Outage) watch() {
	if o.patience == 0 || o.timer != nil || o.closed {
		return
	}
	o.timer = time.AfterFunc(o.patience, func() {
		o.mu.Lock()
		o.timer = nil
		for _, c := range o.concerns {
			if c.underWay > 0 {
				o.watch()
				break
			}
		}
		o.mu.Unlock()
		o.look()
	})
}

// Failed says that the broker did not answer.
func (o *Outage) Failed(err error) { o.FailedAt("", err) }

// FailedAt is Failed for one concern.
func (o *Outage) FailedAt(name string, err error) {
	o.mu.Lock()
	c := o.concern(name)
	c.failure = err
	if c.since.IsZero() {
		c.since = time.Now()
	}
	o.mu.Unlock()
	o.look()
}

// Answered says that it did.
func (o *Outage) Answered() { o.AnsweredAt("") }

// AnsweredAt is Answered for one concern.
func (o *Outage) AnsweredAt(name string) {
	o.mu.Lock()
	c := o.concern(name)
	c.failure, c.since = nil, time.Time{}
	if c.underWay > 0 {
		c.since = time.Now()
	}
	over := !o.began.IsZero()
	o.mu.Unlock()
	if over {
		o.look()
	}
}

// AnsweredAll says that whatever is asked has an answer, where nothing is under way that
// would say so itself.
func (o *Outage) AnsweredAll() {
	o.mu.Lock()
	for _, c := range o.concerns {
		if c.underWay > 0 {
			o.mu.Unlock()
			return
		}
	}
	for _, c := range o.concerns {
		c.failure, c.since = nil, time.Time{}
	}
	o.mu.Unlock()
	o.look()
}

// Since is for how long a concern has had no answer, with what is under way.
func (o *Outage) Since(name string) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c := o.concerns[name]; c != nil && !c.since.IsZero() {
		return time.Since(c.since)
	}
	return 0
}

// UnderWay is how much is asked at this moment.
func (o *Outage) UnderWay() (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.concerns {
		n += c.underWay
	}
	return n
}

// Told is for how long the outage lasts that was told, or 0.
func (o *Outage) Told() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.began.IsZero() {
		return 0
	}
	return max(time.Since(o.began), 1)
}

// look tells what has changed.
func (o *Outage) look() {
	now := time.Now()
	o.mu.Lock()
	var first time.Time
	var failure error
	wanting := false
	for name, c := range o.concerns {
		if c.since.IsZero() {
			continue
		}
		silent := now.Sub(c.since)
		failing, hanging := c.failure != nil && silent >= o.after, o.patience > 0 && c.underWay > 0 && silent >= o.patience
		wanting = wanting || c.failure != nil
		if !failing && !hanging {
			continue
		}
		if first.IsZero() || c.since.Before(first) {
			first, failure = c.since, c.failure
			if failure == nil {
				failure = fmt.Errorf("%s: no answer for %v", name, silent.Round(100*time.Millisecond))
			}
		}
	}
	began, closed := o.began, o.closed
	switch {
	case began.IsZero() && !first.IsZero() && !closed:
		o.began = first
	case !began.IsZero() && first.IsZero() && !wanting:
		o.began = time.Time{}
	}
	ended := !began.IsZero() && o.began.IsZero()
	o.mu.Unlock()
	switch {
	case closed:
	case began.IsZero() && !first.IsZero():
		o.sink.Report(driver.Report{Kind: driver.ReportOutage, Err: failure, Text: o.text})
	case ended:
		o.sink.Report(driver.Report{Kind: driver.ReportRecovered, Duration: time.Since(began)})
	}
}

// Close ends the reports.
func (o *Outage) Close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	if o.timer != nil {
		o.timer.Stop()
		o.timer = nil
	}
}
