package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/tidings-go/tidings"
)

// happening is one line of the story: a module tells an event, or a subscription
// has done something with it. Services write it as JSON.
type happening struct {
	Event string `json:"event"`
	// Module is who tells the event; else Subscription is who heard of it.
	Module       string        `json:"module,omitempty"`
	Subscription string        `json:"subscription,omitempty"`
	Outcome      outcome       `json:"outcome,omitempty"`
	Attempt      int           `json:"attempt,omitempty"`
	Wait         time.Duration `json:"wait,omitempty"`
	Reason       string        `json:"reason,omitempty"`
	Error        string        `json:"error,omitempty"`
}

// outcome is what became of a delivery, or of one attempt.
type outcome string

const (
	handled      outcome = "handled"
	retried      outcome = "retried" // the only one that is not the end
	deduplicated outcome = "deduplicated"
	deadLettered outcome = "dead letter"
)

// reporter is an observer that passes on what belongs to the story.
type reporter func(happening)

// ObservePublish implements [tidings.PublishObserver]: in memory handlers run
// before Publish returns, so the telling comes first.
func (r reporter) ObservePublish(ctx context.Context, p *tidings.Publication) (context.Context, func(error)) {
	for _, e := range p.Events {
		module, _, _ := strings.Cut(e.Type(), ".")
		r(happening{Event: e.Type(), Module: module})
	}
	return ctx, nil
}

// Observe implements [tidings.Observer].
func (r reporter) Observe(_ context.Context, o tidings.Observation) {
	outcomes := map[tidings.Kind]outcome{
		tidings.Handled: handled, tidings.Retried: retried, tidings.Deduplicated: deduplicated, tidings.DeadLettered: deadLettered,
	}
	if outcomes[o.Kind] == "" {
		return
	}
	h := happening{Event: o.Type, Subscription: o.Subscription, Outcome: outcomes[o.Kind], Attempt: o.Attempt, Wait: o.Wait, Reason: o.Reason}
	if o.Err != nil {
		h.Error = o.Err.Error()
	}
	r(h)
}

// observers are those that tell the story.
func observers(n *narrator) []tidings.Observer { return []tidings.Observer{reporter(n.report)} }

// lines is a reporter that writes each happening as a line of JSON.
func lines(out io.Writer) reporter {
	var mu sync.Mutex
	encoder := json.NewEncoder(out)
	return func(h happening) {
		mu.Lock()
		defer mu.Unlock()
		_ = encoder.Encode(h) // nobody listens any more
	}
}

// narrator tells the story to people, scene by scene: first who tells the event,
// then who heard of it, in whatever order the processes report that.
type narrator struct {
	out   io.Writer
	color bool

	mu      sync.Mutex
	begun   bool        // the scene's event was told
	early   []happening // reported before it
	ended   int         // deliveries that have come to their end
	changed chan struct{}
}

func newNarrator(out io.Writer, color bool) *narrator {
	return &narrator{out: out, color: color, changed: make(chan struct{})}
}

const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	blue   = "34"
)

func (n *narrator) paint(style, text string) string {
	if !n.color {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

// say writes a line.
func (n *narrator) say(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.line(format, args...)
}

func (n *narrator) line(format string, args ...any) { fmt.Fprintf(n.out, format+"\n", args...) }

// scene begins a part of the story, in which one event is told. It returns how
// many deliveries have come to their end before.
func (n *narrator) scene(heading string) (ended int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.begun = false
	n.line("\n%s", n.paint(bold, heading))
	return n.ended
}

// recovery begins a part in which what was told before is heard.
func (n *narrator) recovery(heading string) {
	n.scene(heading)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.begun = true
}

// report tells a happening. It may be called from any goroutine.
func (n *narrator) report(h happening) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if h.Module == "" && !n.begun {
		n.early = append(n.early, h)
		return
	}
	n.tell(h)
	if h.Module != "" {
		n.begun = true
		for _, h := range n.early {
			n.tell(h)
		}
		n.early = nil
	}
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *narrator) tell(h happening) {
	if h.Module != "" {
		n.line("  %s tells  %s", n.paint(blue, pad(h.Module, 14)), n.paint(bold, h.Event))
		return
	}
	var text string
	switch h.Outcome {
	case handled:
		text = n.paint(green, "✓ handled")
		if h.Attempt > 1 {
			text = n.paint(green, fmt.Sprintf("✓ handled at attempt %d", h.Attempt))
		}
	case retried:
		text = n.paint(yellow, fmt.Sprintf("↻ failed, again in %v: %s", h.Wait.Round(10*time.Millisecond), h.Error))
	case deduplicated:
		text = n.paint(yellow, "≡ recognised as a duplicate, the handler is not called")
	case deadLettered:
		text = n.paint(red, fmt.Sprintf("✗ dead letter (%s): %s", h.Reason, h.Error))
	}
	if h.Outcome != retried {
		n.ended++
	}
	n.line("  %s %s %s", pad("", 14), n.paint(dim, "→ "+pad(h.Subscription, 30)), text)
}

// await returns when that many deliveries have come to their end and were told.
func (n *narrator) await(ctx context.Context, ended int) error {
	for {
		n.mu.Lock()
		now, changed := n.ended, n.changed
		n.mu.Unlock()
		if now >= ended {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d deliveries have ended: %w", now, ended, context.Cause(ctx))
		}
	}
}

func pad(text string, width int) string {
	return text + strings.Repeat(" ", max(width-len(text), 0))
}
