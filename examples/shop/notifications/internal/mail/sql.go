package mail

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/tidings-go/tidings"
	billingevents "github.com/tidings-go/tidings/examples/shop/billing/events"
	identityevents "github.com/tidings-go/tidings/examples/shop/identity/events"
	"github.com/tidings-go/tidings/inbox"
)

// Schema makes the table. Nothing in it says one mail for an event: that is the
// inbox's work, and the demo counts it.
const Schema = `CREATE TABLE IF NOT EXISTS notifications_mails (
	mail_id  text PRIMARY KEY,
	user_id  text NOT NULL,
	kind     text NOT NULL,
	event_id text NOT NULL
);
`

// SQL is a [Storage] in a database: what was sent and the record that the event
// was handled are one commit.
type SQL struct {
	db    *sql.DB
	inbox inbox.Store[*sql.Tx]
}

// NewSQL returns the mails of a database.
func NewSQL(db *sql.DB, store inbox.Store[*sql.Tx]) *SQL { return &SQL{db, store} }

// OnUserCreated implements [Storage].
func (s *SQL) OnUserCreated(react func(context.Context, Rows, tidings.Event[identityevents.UserCreatedPayload]) error) tidings.Reaction {
	return inbox.On(s.inbox, identityevents.UserCreated, within(react))
}

// OnSubscriptionActivated implements [Storage].
func (s *SQL) OnSubscriptionActivated(react func(context.Context, Rows, tidings.Event[billingevents.SubscriptionActivatedPayload]) error) tidings.Reaction {
	return inbox.On(s.inbox, billingevents.SubscriptionActivated, within(react))
}

// within gives a reaction the rows of the inbox's transaction.
func within[E any](react func(context.Context, Rows, E) error) func(context.Context, *sql.Tx, E) error {
	return func(ctx context.Context, tx *sql.Tx, e E) error { return react(ctx, rows{tx}, e) }
}

type rows struct{ tx *sql.Tx }

// Add implements [Rows].
func (r rows) Add(ctx context.Context, n Notification) error {
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("notifications: mail: %w", err)
	}
	_, err = r.tx.ExecContext(ctx, `INSERT INTO notifications_mails (mail_id, user_id, kind, event_id) VALUES ($1, $2, $3, $4)`,
		id.String(), n.UserID, n.Kind, n.EventID)
	return err
}

// Sent implements [Storage].
func (s *SQL) Sent(ctx context.Context) (all []Notification, err error) {
	found, err := s.db.QueryContext(ctx, `SELECT user_id, kind, event_id FROM notifications_mails ORDER BY mail_id`) // an id begins with its time
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, found.Close()) }()
	all = []Notification{}
	for found.Next() {
		var n Notification
		if err := found.Scan(&n.UserID, &n.Kind, &n.EventID); err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, found.Err()
}
