package faults

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

// consume handles until ctx ends.
func (p *process) consume(ctx context.Context) error {
	b := p.subscribed()
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	if b.Ready(ctx) == nil {
		p.journal.write(entry{word: wordReady})
	}
	return <-done
}

// both handles what it publishes.
func (p *process) both(ctx context.Context) error {
	b := p.subscribed()
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	if b.Ready(ctx) == nil {
		p.journal.write(entry{word: wordReady})
		if err := p.publishThrough(ctx, b); err != nil {
			return err
		}
	}
	return <-done
}

// instance is a service as teams deploy it: it handles, it relays where there is an
// outbox, and it tells its health to whoever asks, which is the journal.
func (p *process) instance(ctx context.Context) error {
	b := p.subscribed()
	if p.parts.Queue != nil {
		if err := p.addRelay(b); err != nil {
			return err
		}
	}
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	joined := make(chan error, 1)
	go func() { joined <- b.Ready(ctx) }()
	look := time.NewTicker(healthPause)
	defer look.Stop()
	for ready := false; ; {
		select {
		case err := <-done:
			p.journal.write(entry{word: wordUnready}, entry{word: wordReturned})
			return err
		case err := <-joined:
			if err == nil {
				p.journal.write(entry{word: wordReady})
			}
		case <-look.C:
			if now := b.Health().Ready; now != ready {
				ready = now
				p.journal.write(entry{word: map[bool]string{true: wordHealthy, false: wordUnready}[now]})
			}
		}
	}
}

// healthPause is how often an instance looks at its health.
const healthPause = 50 * time.Millisecond

func (p *process) subscribed() *tidings.Bus {
	d := p.parts.Driver
	if _, direct := d.(driver.Direct); !direct {
		d = &watchedDriver{d, p}
	}
	b := p.bus(d, &chronicler{p.journal, p.mark()})
	options := p.parts.Subscribe
	if d.Features().History {
		options.StartAt = tidings.StartBeginning
	}
	options.Timeout = cmp.Or(p.Timeout, options.Timeout)
	if p.MaxCrashes > 0 {
		options.MaxCrashes = p.MaxCrashes
	}
	var reaction tidings.Reaction
	if p.parts.React != nil {
		reaction = p.parts.React(p.contract(), p.mark(), p.handle)
	} else {
		reaction = p.contract().On(func(ctx context.Context, e tidings.Event[StepPayload]) error {
			return p.handle(ctx, e, func(context.Context) error { return nil })
		})
	}
	name := "work"
	if p.Late {
		name = "late"
	}
	b.Module("faults").Subscribe(name, &options, reaction)
	return b
}

// contract is the one that this version of the application knows.
func (p *process) contract() tidings.Contract[StepPayload] {
	if p.Binary > 0 {
		return StepRetaken
	}
	return StepTaken
}

// errPoison is what a poisoned event meets.
var errPoison = errors.New("this number cannot be handled")

// handle is the application's handler.
func (p *process) handle(ctx context.Context, e tidings.Event[StepPayload], effect func(context.Context) error) error {
	number := e.Payload().Number
	if p.Work.PoisonEvery > 0 && number%p.Work.PoisonEvery == p.Work.PoisonEvery-1 {
		return tidings.Permanent(errPoison)
	}
	if p.Work.CrashAggregate == e.AggregateID() && p.Work.CrashNumber == number {
		die()
	}
	if p.Work.SlowEvery > 0 && number%p.Work.SlowEvery == p.Work.SlowEvery-1 {
		Pause(p.Work.SlowFor) // whatever its context says
	}
	if p.Work.Takes > 0 {
		timer := time.NewTimer(p.Work.Takes)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return fmt.Errorf("faults: %w", context.Cause(ctx))
		}
	}
	return effect(ctx)
}

// chronicler writes into the journal what the engine tells.
type chronicler struct {
	journal *journal
	mark    string
}

var words = map[tidings.Kind]string{
	tidings.Started: wordStarted, tidings.Handled: wordHandled, tidings.Retried: wordFailed, tidings.Blocked: wordFailed,
	tidings.Deduplicated: wordDeduplicated, tidings.DeadLettered: wordDead, tidings.Discarded: wordDiscarded,
	tidings.StoreFailed: wordStoreFailed, tidings.GuardClosed: wordGuard,
}

// Observe implements [tidings.Observer].
func (c *chronicler) Observe(_ context.Context, o tidings.Observation) {
	word, known := words[o.Kind]
	if !known {
		return
	}
	reason := o.Reason
	if o.Err != nil {
		reason += " " + o.Err.Error()
	}
	c.journal.write(entry{word: word, id: c.mark + o.ID, place: Step{Aggregate: c.mark + o.AggregateID}, count: o.Count, reason: reason})
}
