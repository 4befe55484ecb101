package users

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/outbox"
)

// Schema makes the table.
const Schema = `CREATE TABLE IF NOT EXISTS identity_users (
	user_id   text PRIMARY KEY,
	email     text NOT NULL,
	name      text NOT NULL,
	event_id  text NOT NULL,
	signed_up bigint NOT NULL -- milliseconds since 1970
);
`

// SQL is a [Storage] in a database: users are rows, and their events are in the
// outbox of the same transaction.
type SQL struct {
	db  *sql.DB
	box *outbox.Box[*sql.Tx]
}

// NewSQL returns the users of a database.
func NewSQL(db *sql.DB, box *outbox.Box[*sql.Tx]) *SQL { return &SQL{db, box} }

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

type rows struct{ tx *sql.Tx }

// Add implements [Rows].
func (r rows) Add(ctx context.Context, u User) error {
	_, err := r.tx.ExecContext(ctx, `INSERT INTO identity_users (user_id, email, name, event_id, signed_up) VALUES ($1, $2, $3, $4, $5)`,
		u.ID, u.Email, u.Name, u.EventID, u.SignedUp.UnixMilli())
	return err
}

const selectUsers = `SELECT user_id, email, name, event_id, signed_up FROM identity_users `

func scan(row interface{ Scan(...any) error }) (u User, err error) {
	var signedUp int64
	err = row.Scan(&u.ID, &u.Email, &u.Name, &u.EventID, &signedUp)
	u.SignedUp = time.UnixMilli(signedUp)
	return u, err
}

// User implements [Storage].
func (s *SQL) User(ctx context.Context, id string) (User, error) {
	u, err := scan(s.db.QueryRowContext(ctx, selectUsers+`WHERE user_id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrUnknown
	}
	return u, err
}

// Users implements [Storage].
func (s *SQL) Users(ctx context.Context) (all []User, err error) {
	found, err := s.db.QueryContext(ctx, selectUsers+`ORDER BY user_id`) // an id begins with its time
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, found.Close()) }()
	for found.Next() {
		u, err := scan(found)
		if err != nil {
			return nil, err
		}
		all = append(all, u)
	}
	return all, found.Err()
}
