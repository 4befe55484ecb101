package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/tidings-go/tidings"
)

// narrator is an observer that says who told what to whom, for people.
type narrator struct {
	out   io.Writer
	color bool

	mu sync.Mutex // one line at a time
}

func newNarrator(out io.Writer, color bool) *narrator {
	return &narrator{out: out, color: color}
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

// say writes a line of the story.
func (n *narrator) say(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fmt.Fprintf(n.out, format+"\n", args...)
}

// ObservePublish implements [tidings.PublishObserver]: in memory handlers run
// before Publish returns, so the telling comes first.
func (n *narrator) ObservePublish(ctx context.Context, p *tidings.Publication) (context.Context, func(error)) {
	for _, e := range p.Events {
		module, _, _ := strings.Cut(e.Type(), ".")
		n.say("  %s tells  %s", n.paint(blue, pad(module, 14)), n.paint(bold, e.Type()))
	}
	return ctx, nil
}

// Observe implements [tidings.Observer].
func (n *narrator) Observe(_ context.Context, o tidings.Observation) {
	var line string
	switch o.Kind {
	case tidings.Handled:
		line = n.paint(green, "✓ handled")
		if o.Attempt > 1 {
			line = n.paint(green, fmt.Sprintf("✓ handled at attempt %d", o.Attempt))
		}
	case tidings.Retried:
		line = n.paint(yellow, fmt.Sprintf("↻ failed (%v), tried again in %v", o.Err, o.Wait.Round(10*time.Millisecond)))
	case tidings.Deduplicated:
		line = n.paint(yellow, "≡ recognised as a duplicate, the handler is not called")
	case tidings.DeadLettered:
		line = n.paint(red, fmt.Sprintf("✗ dead letter (%s): %v", o.Reason, o.Err))
	default:
		return
	}
	n.say("  %s %s %s", pad("", 14), n.paint(dim, "→ "+pad(o.Subscription, 30)), line)
}

func pad(text string, width int) string {
	return text + strings.Repeat(" ", max(width-len(text), 0))
}
