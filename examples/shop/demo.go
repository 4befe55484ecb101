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

const (
	// storyTime bounds the story on a slow broker.
	storyTime = time.Minute
	// sceneTime is how long a scene waits where what does not come has been lost.
	sceneTime = 5 * time.Second
)

// atMostOnce is the driver on which an event may be lost: a scene does not wait
// for ever for what its event leads to.
const atMostOnce = "redis"

// tell plays the story and returns the summary once everything has come to its
// end.
func tell(ctx context.Context, n *narrator, s service, driver string) (summary, error) {
	ctx, cancel := context.WithTimeout(ctx, storyTime)
	defer cancel()
	var ada string
	endings := 0
	for _, scene := range []struct {
		heading string
		play    func() error
		endings int // deliveries that the scene leads to
	}{
		{"Ada signs up. Two modules hear of it; identity knows neither.", func() (err error) {
			ada, err = s.signUp(ctx, "ada@example.com", "Ada")
			return err
		}, 2},
		{"Identity tells it again, as after a lost answer. Nothing happens twice.", func() error {
			return s.announce(ctx, ada)
		}, 2},
		{"Grace signs up. Her mail server asks for patience, so the handler fails once.", func() error {
			_, err := s.signUp(ctx, "grace@slow.example", "Grace")
			return err
		}, 2},
		{"Edsger signs up with an address that cannot exist. Billing does not mind.", func() error {
			_, err := s.signUp(ctx, "edsger@nowhere.invalid", "Edsger")
			return err
		}, 2},
		{"Ada subscribes. Billing tells, notifications listens.", func() error {
			return s.activate(ctx, ada, "pro")
		}, 1},
	} {
		n.scene(scene.heading)
		if err := scene.play(); err != nil {
			return summary{}, err
		}
		// On a broker they come later, and the scenes stay in order.
		endings += scene.endings
		if err := await(ctx, n, endings, driver); err != nil {
			return summary{}, err
		}
	}
	told, err := s.stats(ctx)
	if driver == atMostOnce {
		told.expected = endings
		return told, err
	}
	if err == nil && told.ended() != endings {
		err = fmt.Errorf("%d deliveries have ended, the story has %d", told.ended(), endings)
	}
	return told, err
}

// await waits for the endings of a scene. What has not come within the scene's
// time was lost where that may happen, and is an error elsewhere.
func await(ctx context.Context, n *narrator, endings int, driver string) error {
	if driver != atMostOnce {
		return n.await(ctx, endings)
	}
	scene, cancel := context.WithTimeout(ctx, sceneTime)
	defer cancel()
	if err := n.await(scene, endings); err != nil {
		return ctx.Err()
	}
	return nil
}

func (m *Main) runDemo(ctx context.Context) error {
	getenv := m.environment()
	driver := getenv("EVENT_DRIVER")
	if driver == "" {
		driver = "in-memory"
	}
	n := newNarrator(m.stage(), m.Color)
	n.say("%s", n.paint(bold, "Three modules, one bus, driver "+driver))
	s, err := open(ctx, getenv, allModules, slog.New(slog.DiscardHandler), reporter(n.report))
	if err != nil {
		return err
	}
	told, err := tell(s.alive, n, (*local)(s), driver)
	if err = errors.Join(err, s.close()); err != nil {
		return err
	}
	n.say("\n%s", n.paint(bold, "Summary"))
	if err := told.write(m.Out, m.summary); err != nil {
		return err
	}
	if driver == "in-memory" {
		n.say("\n%s", n.paint(dim, "The same on a broker, with no change in any module:\n"+
			"  EVENT_DRIVER=kafka make demo    (or redis-streams, sqs, redis)"))
	}
	return nil
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
