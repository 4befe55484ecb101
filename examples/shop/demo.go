package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tidings-go/tidings/setup"
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
	storyTime = 3 * time.Minute
	// sceneTime is how long a scene waits where what does not come has been lost, or
	// may have been handled elsewhere.
	sceneTime = 5 * time.Second
)

// atMostOnce is the driver on which an event may be lost: a scene does not wait
// for ever for what its event leads to.
const atMostOnce = "redis"

// story is one telling: on which driver, where its rows are, and how much of it
// an earlier process has told.
type story struct {
	getenv  func(string) string
	driver  string
	books   *books // nil: rows are in memory, and the story begins at the beginning
	chapter int    // counts the stories of a database
	played  int    // scenes that earlier processes have begun
	ada     string // user id, once she has signed up
}

// address is one of this chapter's: every chapter has people of its own.
func (s *story) address(name, host string) string {
	if s.chapter > 1 {
		name += "+" + strconv.Itoa(s.chapter)
	}
	return name + "@" + host
}

func (s *story) adas() string    { return s.address("ada", "example.com") }
func (s *story) graces() string  { return s.address("grace", "slow.example") }
func (s *story) edsgers() string { return s.address("edsger", "nowhere.invalid") }

// scene is a part of the story, in which one event is told.
type scene struct {
	heading string
	play    func(context.Context, service) error
	endings int                // deliveries that the scene leads to
	left    func(*ledger) bool // whether it has left its row in the books; nil: it leaves none
}

func (s *story) scenes() []scene {
	signUp := func(email, name string) func(context.Context, service) error {
		return func(ctx context.Context, shop service) error {
			_, err := shop.signUp(ctx, email, name)
			return err
		}
	}
	signedUp := func(email string) func(*ledger) bool {
		return func(l *ledger) bool {
			_, found := l.user(email)
			return found
		}
	}
	return []scene{
		{"Ada signs up. Two modules hear of it; identity knows neither.", func(ctx context.Context, shop service) (err error) {
			s.ada, err = shop.signUp(ctx, s.adas(), "Ada")
			return err
		}, 2, signedUp(s.adas())},
		{"Identity tells it again, as after a lost answer. Nothing happens twice.", func(ctx context.Context, shop service) error {
			return shop.announce(ctx, s.ada)
		}, 2, nil},
		{"Grace signs up. Her mail server asks for patience, so the handler fails once.", signUp(s.graces(), "Grace"), 2, signedUp(s.graces())},
		{"Edsger signs up with an address that cannot exist. Billing does not mind.", signUp(s.edsgers(), "Edsger"), 2, signedUp(s.edsgers())},
		{"Ada subscribes. Billing tells, notifications listens.", func(ctx context.Context, shop service) error {
			return shop.activate(ctx, s.ada, "pro")
		}, 1, func(l *ledger) bool { return s.ada != "" && l.subscribed(s.ada) }},
	}
}

// find says where in the story a ledger stands.
func (s *story) find(l *ledger) {
	for s.chapter = 1; ; s.chapter++ {
		s.played, s.ada = 0, ""
		if ada, found := l.user(s.adas()); found {
			s.ada = ada.ID
		}
		for n, scene := range s.scenes() {
			if scene.left != nil && scene.left(l) {
				s.played = n + 1
			}
		}
		if s.played < len(s.scenes()) {
			return // it was not told to its end, or is new
		}
		next := story{chapter: s.chapter + 1}
		if _, begun := l.user(next.adas()); !begun && len(l.waiting()) > 0 {
			return // all of it was told, and not all handled
		}
	}
}

// prepare reads the environment and the books, and says what they have kept.
func (m *Main) prepare(ctx context.Context, n *narrator) (*story, error) {
	getenv, err := m.environment(ctx)
	if err != nil {
		return nil, err
	}
	config := setup.Read(getenv)
	s := &story{getenv: getenv, driver: config.Driver, chapter: 1}
	if s.driver == "" {
		s.driver = "in-memory"
	}
	if !hasDatabase(config) || s.driver == atMostOnce {
		return s, nil
	}
	if s.books, err = openBooks(ctx, config); err != nil {
		return nil, err
	}
	l, err := s.books.read(ctx)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	s.find(&l)
	s.recall(n, &l)
	return s, nil
}

// recall says what an earlier process has left.
func (s *story) recall(n *narrator, l *ledger) {
	if config := setup.Read(s.getenv); s.driver == "sqlite" || config.DatabaseURL == "" {
		n.say("%s", n.paint(dim, "Rows and events are in "+config.SQLitePath+". To go on with it after a crash, or to tell it again there: SQLITE_PATH="+config.SQLitePath))
	}
	if s.played == 0 {
		if s.chapter > 1 {
			n.say("The database has the story already. It is told again, with new people of the same names.")
		}
		return
	}
	n.recovery("An earlier process was ended in the middle of the story. The database has kept what it had stored:")
	for _, person := range []struct{ name, email string }{{"Ada", s.adas()}, {"Grace", s.graces()}, {"Edsger", s.edsgers()}} {
		if _, found := l.user(person.email); found {
			n.say("  the sign-up of %s", person.name)
		} else {
			n.say("  no sign-up of %s: it was not committed, nobody has heard of it, and it is made now", person.name)
		}
	}
	if s.ada != "" && l.subscribed(s.ada) {
		n.say("  the subscription of Ada")
	}
	for _, line := range l.waiting() {
		n.say("  %s", n.paint(yellow, line))
	}
	if len(l.waiting()) == 0 {
		n.say("  and that every event so far was handled")
	}
	if l.unsent > 0 {
		n.say("  events in the outbox, not on their way yet: %d", l.unsent)
	}
}

func (s *story) close() error {
	if s.books == nil {
		return nil
	}
	return s.books.db.Close()
}

// tell plays what is left of the story and returns the summary once everything
// has come to its end.
func (s *story) tell(ctx context.Context, n *narrator, shop service) (summary, error) {
	ctx, cancel := context.WithTimeout(ctx, storyTime)
	defer cancel()
	if s.played > 0 {
		if _, err := s.books.settle(ctx); err != nil {
			return summary{}, fmt.Errorf("what an earlier process has left was not handled: %w", err)
		}
	}
	scenes, endings := s.scenes()[s.played:], 0
	for _, scene := range scenes {
		before := n.scene(scene.heading)
		if err := scene.play(ctx, shop); err != nil {
			return summary{}, err
		}
		// On a broker they come later, and the scenes stay in order.
		endings += scene.endings
		if err := s.await(ctx, n, before+scene.endings); err != nil {
			return summary{}, err
		}
	}
	if s.books != nil { // what an earlier process had told may have come among it
		if _, err := s.books.settle(ctx); err != nil {
			return summary{}, err
		}
	}
	told, err := published(ctx, shop, len(scenes))
	switch {
	case s.driver == atMostOnce:
		told.expected = endings
	case err == nil && s.books == nil && told.ended() != endings:
		err = fmt.Errorf("%d deliveries have ended, the story has %d", told.ended(), endings)
	}
	return told, err
}

// await waits for the endings of a scene. What has not come within the scene's
// time was lost where that may happen, or another process has handled it, which
// the books say; elsewhere it is an error.
func (s *story) await(ctx context.Context, n *narrator, endings int) error {
	if s.driver != atMostOnce && s.books == nil {
		return n.await(ctx, endings)
	}
	for {
		scene, cancel := context.WithTimeout(ctx, sceneTime)
		err := n.await(scene, endings)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		if s.books == nil {
			return nil
		}
		if l, err := s.books.read(ctx); err != nil || len(l.waiting()) == 0 {
			return err
		}
	}
}

// published returns the stats once they have the events of all scenes: a relay
// counts an event after it was sent, which may be after it was handled.
func published(ctx context.Context, shop service, events int) (summary, error) {
	for tries := 0; ; tries++ {
		told, err := shop.stats(ctx)
		if err != nil || told.Published >= events || tries == 600 { // half a minute
			return told, err
		}
		select {
		case <-ctx.Done():
			return told, context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// end says what became of the story, and proves it by the books.
func (s *story) end(ctx context.Context, m *Main, n *narrator, heading string, told summary) error {
	n.say("\n%s", n.paint(bold, heading))
	if err := told.write(m.Out, m.summary); err != nil || s.books == nil {
		return err
	}
	l, err := s.books.read(ctx)
	if err == nil {
		err = l.check()
	}
	if err != nil {
		return fmt.Errorf("the database says otherwise: %w", err)
	}
	n.say("\n%s", n.paint(bold, "Counted in the database"))
	l.write(m.stage(), told.Deduplicated)
	return nil
}

func (m *Main) runDemo(ctx context.Context) (err error) {
	n := newNarrator(m.stage(), m.Color)
	driver := m.Getenv("EVENT_DRIVER")
	if driver == "" {
		driver = "in-memory"
	}
	n.say("%s", n.paint(bold, "Three modules, one bus, driver "+driver))
	s, err := m.prepare(ctx, n)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	shop, err := open(ctx, s.getenv, part{modules: allModules, log: slog.New(slog.DiscardHandler), observers: observers(n), lease: m.lease, instance: storyteller})
	if err != nil {
		return err
	}
	told, err := s.tell(shop.alive, n, (*local)(shop))
	if err = errors.Join(err, shop.close(), shop.closeDatabase()); err != nil {
		return err
	}
	if err := s.end(ctx, m, n, "Summary", told); err != nil {
		return err
	}
	if driver == "in-memory" {
		n.say("\n%s", n.paint(dim, "The same on a broker or in a database, with no change in any module:\n"+
			"  EVENT_DRIVER=sqlite make demo    (or postgres, kafka, redis-streams, sqs, redis)"))
	}
	return nil
}

// storyteller is the story's process on Kafka: one that was killed is known by
// that name when it comes back, and gets its events at once.
const storyteller = "storyteller"

// environment is Getenv with what the story needs: a namespace of its own on a
// broker, where events of earlier runs are still stored, shared claims where the
// instances of a subscription have to agree, and a file for SQLite.
func (m *Main) environment(ctx context.Context) (getenv func(string) string, err error) {
	given := setup.Read(m.Getenv)
	defaults := map[string]string{}
	if given.Driver == "" {
		defaults["EVENT_ENV"] = "development"
	}
	switch given.Driver {
	case atMostOnce:
		defaults["EVENT_CLAIMS"] = "redis" // who handles an event that every instance gets
	case "sqs":
		defaults["SQS_FIFO"] = "false" // a FIFO queue drops by itself what is told again, and the story shows who else does
	case "sqlite":
		if given.SQLitePath == "" {
			folder, err := os.MkdirTemp("", "tidings-shop-")
			if err != nil {
				return nil, err
			}
			given.SQLitePath = filepath.Join(folder, "shop.db")
			defaults["SQLITE_PATH"] = given.SQLitePath
		}
	}
	name := given.Namespace
	if ownDatabase := given.Driver == "sqlite" || given.Driver == "postgres"; name == "" && !ownDatabase {
		name = "shop-" + strconv.FormatInt(time.Now().UnixMilli(), 36)
	}
	if hasDatabase(given) {
		if name, err = namespace(ctx, given, name); err != nil {
			return nil, err
		}
	}
	defaults["EVENT_NAMESPACE"] = name
	return func(name string) string {
		if value := m.Getenv(name); strings.TrimSpace(value) != "" {
			return value
		}
		return defaults[name]
	}, nil
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

func (l *local) stats(ctx context.Context) (summary, error) { return (*shop)(l).summary(ctx) }
