package outbox

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/calls"
)

// worker sends the rows of its slots, one send at a time.
type worker struct {
	relay  *Relay
	number int
	wake   chan struct{}
	round  sync.Mutex // held from reading rows until they are taken out

	progress progress

	// each is how much is read of a slot at the next look: an equal part for those
	// that had much the last time. 0 is an equal part for all.
	each int

	// sick are channels of which nothing was taken the last time.
	sick map[string]*sickness
}

type sickness struct {
	failures int
	until    time.Time
}

const (
	firstHold = time.Second // of an aggregate whose row was refused
	lastHold  = 5 * time.Minute

	firstBackoff = 100 * time.Millisecond // of a channel, or of the database
	lastBackoff  = 5 * time.Second
)

func doubled(first, last time.Duration, times int) time.Duration {
	return min(first<<min(times, 20), last)
}

// run works until ctx ends.
func (w *worker) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failures := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		}
		more, err := w.once(ctx)
		for err == nil && more && ctx.Err() == nil {
			more, err = w.once(ctx)
		}
		wait := w.relay.o.PollInterval
		if err != nil && ctx.Err() == nil {
			wait = doubled(firstBackoff, lastBackoff, failures)
			if failures++; failures == 1 {
				w.relay.o.Logger.Warn("outbox: the relay cannot reach the database", "error", err)
			}
			if !pause(ctx, wait) {
				return
			}
			wait = 0
		} else if failures > 0 {
			failures = 0
			w.relay.o.Logger.Info("outbox: the relay reaches the database again")
		}
		for _, s := range w.sick {
			wait = min(wait, max(time.Until(s.until), 0))
		}
		timer.Reset(wait)
	}
}

// owned are the worker's slots and their leases.
func (w *worker) owned() (slots []int, leases []driver.Lease) {
	r := w.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	for slot := w.number; slot < Slots; slot += len(r.workers) {
		if lease, ok := r.leases[slot]; ok {
			slots, leases = append(slots, slot), append(leases, lease)
		}
	}
	return slots, leases
}

// once sends one batch. more says that there may be more to send now. The error
// is the database's.
func (w *worker) once(ctx context.Context) (more bool, err error) {
	w.round.Lock()
	defer w.round.Unlock()
	r := w.relay
	slots, leases := w.owned()
	if len(slots) == 0 {
		if !w.progress.stuck(r.o.LeaseTime) {
			w.progress.made()
			return false, nil
		}
		slots = []int{w.number} // it lost them all: is it well again?
	}
	w.progress.begin()
	defer func() { w.progress.end(ctx, err) }()
	rows, more, err := w.read(ctx, slots)
	if err != nil || len(rows) == 0 || len(leases) == 0 {
		return false, err
	}
	w.progress.step()
	// A send ends before the lease of any of its slots does, whatever becomes of the
	// renewal: the next holder sends the same rows. It does not end with ctx: what is
	// sent is to be taken out, else it would be sent again.
	lasting := context.WithoutCancel(ctx)
	until := r.share.Until(leases)
	if until.IsZero() {
		return false, nil // they are lost
	}
	sending, cancel := context.WithDeadline(lasting, until)
	sent, refused := w.send(sending, rows)
	cut := sending.Err() != nil
	cancel()
	w.progress.step()
	ending, cancel := context.WithTimeout(lasting, 2*r.o.LeaseTime/3)
	defer cancel()
	if len(sent) > 0 {
		n, err := calls.Until(ending, func(ctx context.Context) (int, error) {
			return r.queue.Sent(ctx, r.o.Group, r.holder, leases, sent)
		})
		if err != nil {
			return false, err
		}
		r.rate.add(n)
	}
	if len(refused) > 0 {
		if err := w.hold(ending, leases, refused); err != nil {
			return false, err
		}
	}
	// What a send had not come to when its time was over is next.
	return more || len(refused) > 0 || cut && len(sent) > 0, nil
}

// read returns the next batch. more says that there may be more behind it.
func (w *worker) read(ctx context.Context, slots []int) (rows []Row, more bool, err error) {
	limit := w.relay.o.Batch
	each := cmp.Or(w.each, portion(limit, len(slots)))
	look := Look{Slots: slots, Each: each, Limit: limit, Except: w.resting()}
	rows, err = calls.Within(ctx, 2*w.relay.o.LeaseTime/3, func(ctx context.Context) ([]Row, error) { return w.relay.queue.Pending(ctx, look) })
	if err != nil {
		return nil, false, err
	}
	bySlot := make(map[int]int, len(slots))
	for _, row := range rows {
		bySlot[row.Slot]++
	}
	longer := 0 // slots that may have more than was read of them
	for _, n := range bySlot {
		if n == each {
			longer++
		}
	}
	switch {
	case len(rows) == limit:
		w.each = portion(limit, len(bySlot))
	case longer > 0:
		w.each = portion(limit, longer)
	default:
		w.each = 0
	}
	return rows, longer > 0 || len(rows) == limit, nil
}

// portion divides a batch.
func portion(limit, slots int) int { return (limit + slots - 1) / slots }

// hold records what was refused; each aggregate waits longer every time.
func (w *worker) hold(ctx context.Context, leases []driver.Lease, refused []refusedRow) error {
	all := make([]Refused, len(refused))
	for n, one := range refused {
		all[n] = Refused{one.row, one.err.Error(), doubled(firstHold, lastHold, one.row.Attempts)}
	}
	first := refused[0]
	w.relay.o.Logger.Error("outbox: events cannot be sent, their aggregates are held back", "aggregates", len(refused), "type", first.row.Type, "id", first.row.ID,
		"aggregateId", first.row.AggregateID, "attempts", first.row.Attempts+1, "wait", all[0].Wait, "error", first.err)
	return calls.Do(ctx, func(ctx context.Context) error {
		return w.relay.queue.Hold(ctx, w.relay.o.Group, w.relay.holder, leases, all)
	})
}

// resting are the channels that are to be tried later.
func (w *worker) resting() (channels []string) {
	now := time.Now()
	for channel, s := range w.sick {
		if now.Before(s.until) {
			channels = append(channels, channel)
		}
	}
	slices.Sort(channels)
	return channels
}

type refusedRow struct {
	row Row
	err error
}

// send gives rows to the driver and sorts them: those that it has stored, and
// those that hold their aggregate back. The others are tried again as they are.
func (w *worker) send(ctx context.Context, rows []Row) (sent []Row, refused []refusedRow) {
	messages := make([]driver.Message, 0, len(rows))
	tried := make([]Row, 0, len(rows))
	behind := make(map[[2]string]bool) // aggregates whose first row is refused
	refuse := func(row Row, err error) {
		if at := [2]string{row.Channel, row.AggregateID}; !behind[at] {
			behind[at] = true
			refused = append(refused, refusedRow{row, err})
		}
	}
	for _, row := range rows {
		m, err := row.Message()
		switch {
		case behind[[2]string{row.Channel, row.AggregateID}]:
		case err != nil:
			refuse(row, err)
		default:
			messages, tried = append(messages, m), append(tried, row)
		}
	}
	if len(messages) == 0 {
		return nil, refused
	}
	err := w.relay.forward(ctx, messages)
	if err == nil {
		clear(w.sick)
		return tried, refused
	}
	details, known := errors.AsType[*driver.PublishError](err)
	if !known && errors.Is(err, driver.ErrTooLarge) {
		one, more := w.sendEach(ctx, tried, err)
		return one, append(refused, more...)
	}
	results := make([]driver.PublishResult, len(tried))
	stored := make(map[string]bool) // channels of which something was taken
	tooLarge := false
	for n := range results {
		results[n] = driver.PublishResult{State: driver.NotStored, Err: err}
		if known && n < len(details.Results) {
			results[n] = details.Results[n]
		}
		stored[tried[n].Channel] = stored[tried[n].Channel] || results[n].State == driver.Stored
		tooLarge = tooLarge || known && errors.Is(results[n].Err, driver.ErrTooLarge)
	}
	if tooLarge {
		// The driver has tried nothing more. What is not behind one that is too large
		// goes without it.
		rest := make([]Row, 0, len(tried))
		for n, row := range tried {
			if results[n].State == driver.Stored {
				sent = append(sent, row)
			} else if errors.Is(results[n].Err, driver.ErrTooLarge) {
				refuse(row, results[n].Err)
			} else if !behind[[2]string{row.Channel, row.AggregateID}] {
				rest = append(rest, row)
			}
		}
		one, more := w.send(ctx, rest)
		return append(sent, one...), append(refused, more...)
	}
	left := make(map[[2]string]bool) // aggregates of which something is left as it is
	for n, result := range results {
		row := tried[n]
		at := [2]string{row.Channel, row.AggregateID}
		switch {
		case result.State == driver.Stored:
			sent = append(sent, row)
		case stored[row.Channel] && (left[at] || result.State != driver.NotStored || untried(ctx, result.Err)):
			left[at] = true // it comes again with the next batch
		case stored[row.Channel]:
			refuse(row, result.Err)
		default:
			w.sicken(row.Channel, result.Err)
		}
	}
	for channel := range stored {
		if stored[channel] {
			delete(w.sick, channel)
		}
	}
	return sent, refused
}

// untried reports that a row was not sent because the time of the send was over:
// nobody has refused it.
func untried(ctx context.Context, err error) bool {
	return ctx.Err() != nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled))
}

// sendEach finds the rows that are too large for a driver that did not say which
// they are.
func (w *worker) sendEach(ctx context.Context, rows []Row, err error) (sent []Row, refused []refusedRow) {
	if len(rows) == 1 {
		return nil, []refusedRow{{rows[0], err}}
	}
	behind := make(map[[2]string]bool)
	for _, row := range rows {
		at := [2]string{row.Channel, row.AggregateID}
		if behind[at] {
			continue
		}
		one, more := w.send(ctx, []Row{row})
		sent, refused = append(sent, one...), append(refused, more...)
		behind[at] = len(one) == 0
	}
	return sent, refused
}

// sicken lets a channel rest, once for each send.
func (w *worker) sicken(channel string, err error) {
	s := w.sick[channel]
	if s == nil {
		s = &sickness{}
		w.sick[channel] = s
		w.relay.o.Logger.Warn("outbox: events of a channel cannot be sent, they are tried again", "channel", channel, "error", err)
	}
	now := time.Now()
	if now.Before(s.until) {
		return
	}
	s.until = now.Add(doubled(firstBackoff, lastBackoff, s.failures))
	s.failures++
}
