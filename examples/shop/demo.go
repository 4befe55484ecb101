package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// service is the shop as the story sees it: in this process, or behind HTTP.
type service interface {
	signUp(ctx context.Context, email, name string) (userID string, err error)
	announce(ctx context.Context, userID string) error
	activate(ctx context.Context, userID, planID string) error
	stats(ctx context.Context) (summary, error)
}

// endings is how many deliveries the story leads to: four events of users to two
// subscriptions, and one of billing to one.
const endings = 9

// storyTime bounds the story on a slow broker.
const storyTime = time.Minute

// tell plays the story and returns the summary once everything has come to its
// end.
func tell(ctx context.Context, n *narrator, s service) (summary, error) {
	ctx, cancel := context.WithTimeout(ctx, storyTime)
	defer cancel()
	heading := func(text string) { n.say("\n%s", n.paint(bold, text)) }
	// In memory a heading's events are over when its call returns; on a broker
	// they are waited for, so that the story stays in order.
	ended := 0
	settle := func(more int) error { ended += more; return await(ctx, s, ended) }

	heading("Ada signs up. Two modules hear of it; identity knows neither.")
	ada, err := s.signUp(ctx, "ada@example.com", "Ada")
	if err := errors.Join(err, settle(2)); err != nil {
		return summary{}, err
	}
	heading("Identity tells it again, as after a lost answer. Nothing happens twice.")
	if err := errors.Join(s.announce(ctx, ada), settle(2)); err != nil {
		return summary{}, err
	}
	heading("Grace signs up. Her mail server asks for patience, so the handler fails once.")
	_, err = s.signUp(ctx, "grace@slow.example", "Grace")
	if err := errors.Join(err, settle(2)); err != nil {
		return summary{}, err
	}
	heading("Edsger signs up with an address that cannot exist. Billing does not mind.")
	_, err = s.signUp(ctx, "edsger@nowhere.invalid", "Edsger")
	if err := errors.Join(err, settle(2)); err != nil {
		return summary{}, err
	}
	heading("Ada subscribes. Billing tells, notifications listens.")
	if err := errors.Join(s.activate(ctx, ada, "pro"), settle(1)); err != nil {
		return summary{}, err
	}
	return s.stats(ctx)
}

// await looks until that many deliveries have ended.
func await(ctx context.Context, s service, ended int) error {
	for {
		now, err := s.stats(ctx)
		if err != nil {
			return err
		}
		if now.ended() >= ended {
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%d of %d deliveries have ended: %w", now.ended(), ended, ctx.Err())
		}
	}
}

func (m *Main) runDemo(ctx context.Context) error {
	getenv := m.environment()
	driver := getenv("EVENT_DRIVER")
	if driver == "" {
		driver = "in-memory"
	}
	out := m.Out
	if m.summary == "json" {
		out = m.Err // so that the output is the summary only
	}
	n := newNarrator(out, m.Color)
	n.say("%s", n.paint(bold, "Three modules, one bus, driver "+driver))
	s, err := open(ctx, getenv, allModules, slog.New(slog.DiscardHandler), n)
	if err != nil {
		return err
	}
	told, err := tell(ctx, n, (*local)(s))
	if err = errors.Join(err, s.close()); err != nil {
		return err
	}
	if told.ended() != endings {
		return fmt.Errorf("%d deliveries have ended, the story has %d", told.ended(), endings)
	}
	n.say("\n%s", n.paint(bold, "Summary"))
	return told.write(m.Out, m.summary)
}

// local is the shop in this process.
type local shop

func (l *local) signUp(ctx context.Context, email, name string) (string, error) {
	return l.identity.SignUp(ctx, email, name)
}

func (l *local) announce(ctx context.Context, userID string) error {
	return l.identity.Announce(ctx, userID)
}

func (l *local) activate(ctx context.Context, userID, planID string) error {
	_, err := l.billing.Activate(ctx, userID, planID)
	return err
}

func (l *local) stats(context.Context) (summary, error) { return (*shop)(l).summary(), nil }
