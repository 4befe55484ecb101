package accounts

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/tidings-go/tidings"
	identityevents "github.com/tidings-go/tidings/examples/shop/identity/events"
	"github.com/tidings-go/tidings/inbox"
	"github.com/tidings-go/tidings/outbox"
)

// Schema makes the tables. Nothing in it says one profile for a user: that is the
// inbox's work, and the demo counts it.
const Schema = `CREATE TABLE IF NOT EXISTS billing_profiles (
	profile_id text PRIMARY KEY,
	user_id    text NOT NULL,
	email      text NOT NULL,
	event_id   text NOT NULL
);
CREATE TABLE IF NOT EXISTS billing_subscriptions (
	subscription_id text PRIMARY KEY,
	user_id         text NOT NULL,
	plan_id         text NOT NULL,
	event_id        text NOT NULL
);
`

// SQL is a [Storage] in a database.
type SQL struct {
	db    *sql.DB
	box   *outbox.Box[*sql.Tx]
	inbox inbox.Store[*sql.Tx]
}

// NewSQL returns the accounts of a database.
func NewSQL(db *sql.DB, box *outbox.Box[*sql.Tx], store inbox.Store[*sql.Tx]) *SQL {
	return &SQL{db, box, store}
}

// Transact implements [Storage].
func (s *SQL) Transact(ctx context.Context, face *tidings.Module, fn func(Rows, tidings.Publisher) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after the commit it does nothing
	if err := fn(rows{tx}, face.Through(s.box.In(tx))); err != nil {
		return err
	}
	return tx.Commit()
}

// OnUserCreated implements [Storage]: the rows and the record that the event was
// handled are one commit.
func (s *SQL) OnUserCreated(react func(context.Context, Rows, tidings.Event[identityevents.UserCreatedPayload]) error) tidings.Reaction {
	return inbox.On(s.inbox, identityevents.UserCreated, func(ctx context.Context, tx *sql.Tx, e tidings.Event[identityevents.UserCreatedPayload]) error {
		return react(ctx, rows{tx}, e)
	})
}

type rows struct{ tx *sql.Tx }

// AddProfile implements [Rows].
func (r rows) AddProfile(ctx context.Context, p Profile) error {
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("billing: profile: %w", err)
	}
	_, err = r.tx.ExecContext(ctx, `INSERT INTO billing_profiles (profile_id, user_id, email, event_id) VALUES ($1, $2, $3, $4)`,
		id.String(), p.UserID, p.Email, p.EventID)
	return err
}

// AddSubscription implements [Rows].
func (r rows) AddSubscription(ctx context.Context, s Subscription) error {
	_, err := r.tx.ExecContext(ctx, `INSERT INTO billing_subscriptions (subscription_id, user_id, plan_id, event_id) VALUES ($1, $2, $3, $4)`,
		s.ID, s.UserID, s.PlanID, s.EventID)
	return err
}

// Profiles implements [Storage].
func (s *SQL) Profiles(ctx context.Context) (all []Profile, err error) {
	found, err := s.db.QueryContext(ctx, `SELECT user_id, email, event_id FROM billing_profiles ORDER BY profile_id`) // an id begins with its time
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, found.Close()) }()
	all = []Profile{}
	for found.Next() {
		var p Profile
		if err := found.Scan(&p.UserID, &p.Email, &p.EventID); err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, found.Err()
}

// Subscriptions implements [Storage].
func (s *SQL) Subscriptions(ctx context.Context) (all []Subscription, err error) {
	found, err := s.db.QueryContext(ctx, `SELECT subscription_id, user_id, plan_id, event_id FROM billing_subscriptions ORDER BY subscription_id`)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, found.Close()) }()
	for found.Next() {
		var one Subscription
		if err := found.Scan(&one.ID, &one.UserID, &one.PlanID, &one.EventID); err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, found.Err()
}
