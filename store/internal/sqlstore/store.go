package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/inbox"
	"github.com/tidings-go/tidings/outbox"
)

// Store is everything that needs a database, over one: [outbox.Store] and
// [inbox.Store] themselves, and what the engine asks for through Claims, Lanes
// and DeadLetters. All methods may be called at once.
type Store[TX any] struct {
	*base
	transaction func(TX) Executor
	begin       func(ctx context.Context) (tx TX, commit, rollback func(context.Context) error, err error)
	wake        func(ctx context.Context) <-chan struct{}
}

// Settings is what a store is made of.
type Settings[TX any] struct {
	Dialect  *Dialect
	Database Database
	Schema   *Schema
	// KeepSent moves rows that were sent into a table of their own instead of
	// deleting them.
	KeepSent bool
	// MaxParked bounds the parked events of a subscription.
	MaxParked int
	// Transaction gives the executor of a transaction of the application.
	Transaction func(TX) Executor
	// Begin begins a transaction for a handler of the inbox. It obeys ctx only
	// until it returns.
	Begin func(ctx context.Context) (tx TX, commit, rollback func(context.Context) error, err error)
	// Wake is [outbox.Store]'s, or nil.
	Wake func(ctx context.Context) <-chan struct{}
	// Sweep closes the idle connections that do not answer until ctx ends, or nil:
	// it is called after a call that had no answer in its time.
	Sweep func(ctx context.Context)
}

// base is a store without the type of its transactions.
type base struct {
	dialect   *Dialect
	book      *book
	db        Database
	schema    *Schema
	keepSent  bool
	maxParked int

	checked  atomic.Bool  // the schema was found to be right
	claimed  atomic.Int64 // claims since the store was made
	lists    sync.Map     // lease names by group that are known to have rows
	channels sync.Map     // of the log, that are known to have rows
	tallies  sync.Map     // *tally by subscription
	oldest   sync.Map     // by outbox.Part, where the log begins as far as this process knows: int64

	together *together // nil where writers do not wait for each other
	sole     soleWriter

	announced map[int]string // insertions with the dialect's AndNotify
}

// New makes a store. It does not ask the database yet.
func New[TX any](s Settings[TX]) *Store[TX] {
	b := &base{dialect: s.Dialect, book: newBook(s.Dialect), db: s.Database, schema: s.Schema, keepSent: s.KeepSent, maxParked: s.MaxParked}
	b.book.sweeper.sweep = s.Sweep
	if s.Dialect.AndNotify != nil {
		b.announced = make(map[int]string, len(insertions))
		for n, insertion := range insertions {
			b.announced[n] = s.Dialect.AndNotify(insertion)
		}
	}
	if s.Dialect.OneWriter {
		b.together = newTogether(b)
	}
	return &Store[TX]{base: b, transaction: s.Transaction, begin: s.Begin, wake: s.Wake}
}

// namePattern is what a prefix or a schema may be: it is written into statements.
var namePattern = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,31}$`)

// CheckName returns a complaint about a prefix or schema.
func CheckName(option, name string) error {
	if namePattern.MatchString(name) {
		return nil
	}
	return fmt.Errorf("%s is %q: lower-case letters, digits and underscores, at most 32", option, name)
}

// pool runs statements each in a transaction of its own.
func (b *base) pool() Statements { return Statements{b.db, b.book} }

func (b *base) on(executor Executor) Statements { return Statements{executor, b.book} }

// fail names what was tried in an error.
func (b *base) fail(err error, format string, arguments ...any) error {
	if err == nil {
		return nil
	}
	if b.dialect.NoTable(err) {
		err = fmt.Errorf("%w (%s)", ErrSchema, err.Error())
	}
	return fmt.Errorf("%s: %s: %w", b.dialect.Name, fmt.Sprintf(format, arguments...), err)
}

// tries is how often a transaction of ours is tried that the database rolled
// back because of others.
const tries = 8

// atomically runs fn in a transaction of our own, again where the database
// rolled it back because of others: fn must change nothing but the database. An
// error of the commit that is no answer of the server wraps
// [inbox.ErrCommitUnknown]. Where there is one writer at a time, fn may share its
// transaction with others.
func (b *base) atomically(ctx context.Context, fn func(ctx context.Context, run Statements) error) error {
	if b.together != nil {
		return b.again(ctx, func() error { return b.together.do(ctx, fn) })
	}
	return b.again(ctx, func() error {
		began := time.Now()
		tx, err := b.db.Begin(ctx)
		if err != nil {
			b.book.sweeper.noted(ctx, began, err)
			return err
		}
		if err := fn(ctx, b.on(tx)); err != nil {
			undo(ctx, tx)
			return err
		}
		ending, cancel := context.WithTimeout(ctx, answerTime)
		defer cancel()
		began = time.Now()
		err = tx.Commit(ending)
		b.book.sweeper.noted(ending, began, err)
		return b.outcome(err)
	})
}

// undo rolls back, also when ctx has ended.
func undo(ctx context.Context, tx Transaction) {
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTime)
	defer cancel()
	_ = tx.Rollback(ending) // else the server does it when the connection ends
}

// write runs one statement, in a transaction of its own or together with others.
// It returns how many rows that changed.
func (b *base) write(ctx context.Context, statement string, arguments ...any) (affected int64, err error) {
	if b.together != nil {
		err = b.atomically(ctx, func(ctx context.Context, run Statements) error {
			affected, err = run.Exec(ctx, statement, arguments...)
			return err
		})
		return affected, err
	}
	err = b.again(ctx, func() error {
		affected, err = b.pool().Exec(ctx, statement, arguments...)
		return err
	})
	return affected, err
}

// again repeats what a deadlock or a lock that was not had in time has undone.
func (b *base) again(ctx context.Context, try func() error) error {
	for n := 1; ; n++ {
		err := try()
		if err == nil || n == tries || !b.dialect.Retry(err) {
			return err
		}
		wait := time.NewTimer(time.Duration(rand.Int64N(int64(n) * int64(5*time.Millisecond))))
		select {
		case <-ctx.Done():
			wait.Stop()
			return err
		case <-wait.C:
		}
	}
}

// outcome says of an error of a commit whether anything can be committed.
func (b *base) outcome(err error) error {
	if err == nil || b.dialect.Answered(err) {
		return err
	}
	return fmt.Errorf("%w: %w", inbox.ErrCommitUnknown, err)
}

// Check asks whether the database answers and has a schema that this library can
// work with; else the error wraps [ErrSchema] and says what to run.
func (b *base) Check(ctx context.Context) error {
	b.checked.Store(false)
	return b.ready(ctx, b.pool())
}

// ready checks the schema once, before it is first used.
func (b *base) ready(ctx context.Context, run Statements) error {
	if b.checked.Load() {
		return nil
	}
	if err := b.schema.check(ctx, run); err != nil {
		if b.dialect.NoTable(err) {
			err = fmt.Errorf("%w: there is none: call Migrate, or run what Schema prints", ErrSchema)
		}
		return fmt.Errorf("%s: %w", b.dialect.Name, err)
	}
	b.checked.Store(true)
	return nil
}

func microseconds(d time.Duration) int64 { return d.Microseconds() }

func at(microseconds int64) time.Time { return time.UnixMicro(microseconds).UTC() }

// Compile-time: a store is both.
var (
	_ outbox.Store[int] = (*Store[int])(nil)
	_ outbox.Operations = (*Store[int])(nil)
	_ inbox.Store[int]  = (*Store[int])(nil)
	_ driver.Leases     = (*Store[int])(nil)
)

// ErrSchema says that the tables are missing, too old or too new.
var ErrSchema = errors.New("the schema is not what this library needs")
