package inbox

import (
	"context"
	"errors"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

// ErrFenced says that another instance owns the source by now: the transaction
// is rolled back, and the event comes again there. It is [tidings.ErrFenced].
var ErrFenced = tidings.ErrFenced

// Store is what an inbox needs of a database; store/postgres, store/mysql and
// store/sqlite have it. TX is the transaction that handlers get. All methods may
// be called at once.
type Store[TX any] interface {
	// Transact runs fn in a new transaction and commits. An error of fn rolls
	// back and is returned as it is; an error of the commit wraps
	// [ErrCommitUnknown] unless the database said that nothing was committed.
	Transact(ctx context.Context, fn func(ctx context.Context, tx TX) error) error

	// Claim inserts the key in the transaction with one INSERT that does nothing
	// on a conflict. ClaimFresh: this transaction has it. ClaimDone: it was
	// handled, with the digest of the payload then. It waits for another
	// transaction that holds the key, as the database does.
	Claim(ctx context.Context, tx TX, request driver.ClaimRequest) (driver.ClaimAnswer, error)

	// Claimed reads on a connection of its own whether the key was handled by
	// this owner: for a commit whose outcome is unknown.
	Claimed(ctx context.Context, subscription, key, owner string) (bool, error)

	// Start counts, in a statement of its own, that an event is started, and
	// returns how often it was before without End, and how many of these starts
	// were counted as [driver.CountAlone]. With [driver.CountFirst] nothing is
	// counted where there were any.
	Start(ctx context.Context, subscription, key string, counting driver.Counting) (crashes, alone int, err error)

	// End forgets the count of Start: the handler has returned, with or without
	// an error.
	End(ctx context.Context, subscription, key string) error

	// Advance gives a source to this process: it increments the epoch in the row
	// of subscription and source and returns it.
	Advance(ctx context.Context, subscription, source string) (epoch int64, err error)

	// Fence locks that row for the transaction, shared, and is [ErrFenced] when
	// its epoch is newer.
	Fence(ctx context.Context, tx TX, subscription, source string, epoch int64) error
}

// ErrCommitUnknown says that the connection broke while a transaction was
// committed: it may be committed or not.
var ErrCommitUnknown = errors.New("inbox: the outcome of the commit is unknown")
