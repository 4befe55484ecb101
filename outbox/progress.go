package outbox

import (
	"context"
	"sync"
	"time"
)

// progress is whether a worker gets on. The zero value has not begun. All methods
// may be called at once.
type progress struct {
	mu     sync.Mutex
	since  time.Time // of the first step that has not ended well, or zero
	failed bool      // the last round
}

// begin begins a round.
func (p *progress) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since.IsZero() {
		p.since = time.Now()
	}
}

// step says that a part of a round has ended, and the next begins.
func (p *progress) step() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since, p.failed = time.Now(), false
}

func (p *progress) made() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since, p.failed = time.Time{}, false
}

// end ends a round. One that ends with its context says nothing.
func (p *progress) end(ctx context.Context, err error) {
	if err == nil || ctx.Err() != nil {
		p.made()
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = true
}

// stuck reports that nothing has ended well for longer than the leases last. The
// longest step, a send, ends with them.
func (p *progress) stuck(lease time.Duration) bool {
	silent, _ := p.silent()
	return silent > lease+lease/4
}

// silent is for how long nothing has ended well, and whether rounds fail.
func (p *progress) silent() (since time.Duration, failed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since.IsZero() {
		return 0, false
	}
	return time.Since(p.since), p.failed
}

// outageAfter is how long rounds fail until the relay says so.
const outageAfter = time.Second

// Outage is for how long the relay has not got on: its database fails for a second
// or more, or a round does not end within the lease time. 0 when it works, also
// while a broker refuses events, which wait in the outbox. It implements
// [tidings.Watched]. Safe for concurrent use.
func (r *Relay) Outage() (longest time.Duration) {
	for _, w := range r.workers {
		silent, failed := w.progress.silent()
		if failed && silent >= outageAfter || w.progress.stuck(r.o.LeaseTime) {
			longest = max(longest, silent)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.unled.IsZero() {
		if silent := time.Since(r.unled); silent >= outageAfter {
			longest = max(longest, silent)
		}
	}
	return longest
}

// stuck reports that a worker does not get on: then all slots go to another
// instance.
func (r *Relay) stuck() bool {
	for _, w := range r.workers {
		if w.progress.stuck(r.o.LeaseTime) {
			return true
		}
	}
	return false
}

// joined is told that the leases were asked.
func (r *Relay) joined() {
	r.mu.Lock()
	unled := r.unled
	r.unled = time.Time{}
	r.mu.Unlock()
	if !unled.IsZero() {
		r.o.Logger.Info("outbox: the relay reads its leases again", "after", time.Since(unled))
	}
}

// failed is told that they could not be.
func (r *Relay) failed(err error) {
	r.mu.Lock()
	first := r.unled.IsZero()
	if first {
		r.unled = time.Now()
	}
	r.mu.Unlock()
	if first {
		r.o.Logger.Warn("outbox: the relay cannot read its leases", "error", err)
	}
}
