package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/examples/shop/billing"
	"github.com/tidings-go/tidings/examples/shop/identity"
	"github.com/tidings-go/tidings/examples/shop/notifications"
	"github.com/tidings-go/tidings/setup"
)

// books are the rows of all modules, read from outside: by them the story knows
// where an earlier process ended, and what became of every event.
type books struct{ db *setup.SQL }

// openBooks makes the tables that are missing, so that there is something to read.
func openBooks(ctx context.Context, config setup.Config) (*books, error) {
	db, err := setup.OpenSQL(config)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(makeTables(ctx, db), db.Store.Migrate(ctx)); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &books{db}, nil
}

// namespace is the name that the story of a database has on its driver. It is made
// up once and kept, so that whoever goes on with the story finds its events. They
// are where the story began: another driver or name is an error.
func namespace(ctx context.Context, config setup.Config, fresh string) (name string, err error) {
	db, err := setup.OpenSQL(config)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := db.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS shop_story (only_row integer PRIMARY KEY CHECK (only_row = 1), driver text NOT NULL, namespace text NOT NULL)`); err != nil {
		return "", fmt.Errorf("make the story's table: %w", err)
	}
	if _, err := db.ExecContext(ctx, `INSERT INTO shop_story (only_row, driver, namespace) VALUES (1, $1, $2) ON CONFLICT DO NOTHING`, config.Driver, fresh); err != nil {
		return "", fmt.Errorf("note the story: %w", err)
	}
	var driver string
	if err := db.QueryRowContext(ctx, `SELECT driver, namespace FROM shop_story`).Scan(&driver, &name); err != nil {
		return "", fmt.Errorf("find the story: %w", err)
	}
	if driver != config.Driver || config.Namespace != "" && config.Namespace != name {
		return "", fmt.Errorf("this database has a story with EVENT_DRIVER=%s and EVENT_NAMESPACE=%s: go on with these, or take another database", driver, name)
	}
	return name, nil
}

// ledger is what the books say at one moment.
type ledger struct {
	users         []identity.User
	subscriptions []billing.Subscription
	profiles      []billing.Profile
	mails         []notifications.Notification
	refused       []string // events that became dead letters of notifications.welcome
	unsent        int64    // events in the outbox that no subscription can see yet
}

// maxLetters bounds how many dead letters are read.
const maxLetters = 100_000

func (b *books) read(ctx context.Context) (l ledger, err error) {
	// Effects before causes: what is seen without its effect may be about to have it.
	var errs []error
	note := func(err error) { errs = append(errs, err) }
	l.mails, err = notifications.InDatabase(b.db.DB, b.db.Store).Sent(ctx)
	note(err)
	letters, err := b.db.Store.DeadLetters().ListDeadLetters(ctx, driver.DeadLetterFilter{Subscription: "notifications.welcome"}, "", maxLetters)
	note(err)
	for n := range letters {
		l.refused = append(l.refused, letters[n].ID)
	}
	accounts := billing.InDatabase(b.db.DB, nil, b.db.Store)
	l.profiles, err = accounts.Profiles(ctx)
	note(err)
	l.subscriptions, err = accounts.Subscriptions(ctx)
	note(err)
	l.users, err = identity.InDatabase(b.db.DB, nil).Users(ctx)
	note(err)
	status, err := b.db.Store.Status(ctx)
	note(err)
	l.unsent = status.Backlog
	return l, errors.Join(errs...)
}

func (l *ledger) user(email string) (identity.User, bool) {
	n := slices.IndexFunc(l.users, func(u identity.User) bool { return u.Email == email })
	if n < 0 {
		return identity.User{}, false
	}
	return l.users[n], true
}

func (l *ledger) subscribed(userID string) bool {
	return slices.ContainsFunc(l.subscriptions, func(s billing.Subscription) bool { return s.UserID == userID })
}

// account is one delivery that has to have one effect.
type account struct {
	event, of, subscription string
	effects                 int
}

// accounts lists what every event in the books has to lead to.
func (l *ledger) accounts() (all []account) {
	profiles, mails, names := map[string]int{}, map[string]int{}, map[string]string{}
	for _, p := range l.profiles {
		profiles[p.UserID]++
	}
	for _, m := range l.mails {
		mails[m.EventID]++
	}
	for _, id := range l.refused {
		mails[id]++
	}
	for _, u := range l.users {
		names[u.ID] = u.Name
		all = append(all,
			account{"identity.user.created", u.Name, "billing.create-default-profile", profiles[u.ID]},
			account{"identity.user.created", u.Name, "notifications.welcome", mails[u.EventID]})
	}
	for _, s := range l.subscriptions {
		all = append(all, account{"billing.subscription.activated", names[s.UserID], "notifications.subscription", mails[s.EventID]})
	}
	return all
}

// waiting says which events are stored and not handled.
func (l *ledger) waiting() (lines []string) {
	for _, a := range l.accounts() {
		if a.effects == 0 {
			lines = append(lines, fmt.Sprintf("%s of %s is stored and waits for %s", a.event, a.of, a.subscription))
		}
	}
	return lines
}

// check returns an error when anything was lost or had its effect twice.
func (l *ledger) check() error {
	var errs []error
	all := l.accounts()
	for _, a := range all {
		if a.effects != 1 {
			errs = append(errs, fmt.Errorf("%s of %s had %d effects in %s", a.event, a.of, a.effects, a.subscription))
		}
	}
	if effects := len(l.profiles) + len(l.mails) + len(l.refused); effects != len(all) {
		errs = append(errs, fmt.Errorf("the database has %d effects of %d deliveries", effects, len(all)))
	}
	return errors.Join(errs...)
}

// settle waits until every event in the books was handled.
func (b *books) settle(ctx context.Context) (ledger, error) {
	for {
		l, err := b.read(ctx)
		if err != nil {
			return l, err
		}
		waiting := l.waiting()
		if len(waiting) == 0 {
			return l, nil
		}
		select {
		case <-ctx.Done():
			return l, fmt.Errorf("%s: %w", strings.Join(waiting, "; "), context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// write says what the books prove.
func (l *ledger) write(out io.Writer, duplicates int) {
	fmt.Fprintf(out, "  %d users and %d profiles: every user has exactly one\n", len(l.users), len(l.profiles))
	fmt.Fprintf(out, "  %d events, each handled once by each of its subscriptions: %d profiles, %d mails, %d dead letters\n",
		len(l.users)+len(l.subscriptions), len(l.profiles), len(l.mails), len(l.refused))
	fmt.Fprintf(out, "  %d deliveries of this run were duplicates and had no effect\n", duplicates)
}
