package sqlstore

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/tidings-go/tidings/driver"
)

// Dialect is what differs between databases. Statements are written with tokens
// in braces: {now} and the names of tables.
type Dialect struct {
	// Name of the store, which begins its errors: "postgres".
	Name string
	// Now is the store's clock in microseconds since 1970, of an integer type.
	Now string
	// Int is a cast to a 64-bit integer: "CAST(%s AS bigint)".
	Int string
	// Text is a cast to text where a placeholder has no type by its place, or "".
	Text string
	// Positional says that placeholders are ?, one for each argument, instead of
	// $1 or what Placeholder gives.
	Positional bool
	// Placeholder writes the n-th placeholder where it is not $n.
	Placeholder func(n int) string
	// Quote writes the name of a table.
	Quote func(table string) string
	// UseIndex makes a SELECT read an index of a table, given what follows the table
	// in its name; nil where the planner chooses well.
	UseIndex func(table, index string) string
	// Upsert begins what follows the conflict of an INSERT with a key, given its
	// columns: "ON CONFLICT (a, b) DO UPDATE SET".
	Upsert func(columns string) string
	// New names a value of the row that an INSERT could not insert.
	New func(column string) string
	// Returning: INSERT … ON CONFLICT DO UPDATE … WHERE … RETURNING is had.
	Returning bool
	// InsertNew begins an INSERT that does nothing where the key is there, for a
	// database without Returning: "INSERT IGNORE INTO".
	InsertNew string
	// Touch ends an INSERT into claims that locks the row which is there already
	// and counts as two changes then, for a database without Returning. A shared
	// lock, which a plain duplicate leaves, makes deadlocks of two that ask.
	Touch string
	// Take is the end of an INSERT into claims that takes a lease over when it is
	// over, is renewed by its owner, or belongs to a key whose time is over.
	// TakeDone is the same for a key that is handled with the transaction: it
	// yields only to one that is handled already. Without Returning each is a
	// statement of its own, with the same arguments, that follows the INSERT.
	Take, TakeDone string
	// ForUpdate, ForShare and SkipLocked end a SELECT that locks its rows; empty
	// where one writer at a time is the rule.
	ForUpdate, ForShare, SkipLocked string
	// OneWriter says that writers wait for each other whatever they write, so that
	// it is better to write together.
	OneWriter bool
	// Keys joins rows o of the outbox, by primary key and in no other way, with a
	// list of sequences that is its argument, JSON, for a database that would
	// otherwise search the table where it is small and wait there for the rows of
	// transactions that are open. Empty where nobody waits for rows that do not
	// match.
	Keys string
	// Writes is a statement that makes a transaction a writer before it has read
	// anything, or "".
	Writes string
	// Places reads $1, a JSON array of arrays, as a table with the columns channel,
	// slot, position and finished, which may be missing. Only a store with a log needs
	// it; that one has ON CONFLICT DO NOTHING and UPDATE … FROM too.
	Places string
	// Lateral: a subquery may name columns of what is joined before it. A planner
	// that has many ways needs it to see the one by the index.
	Lateral bool
	// Savepoint: a commit is to find out whether the server has rolled the
	// transaction back on its own meanwhile.
	Savepoint bool
	// Serialize makes writers with the same key wait for each other until their
	// transactions end. The key is the hash of a channel and an aggregate.
	Serialize func(ctx context.Context, run Statements, key int64) error
	// Notify tells listeners that rows were added when the transaction commits, or
	// is nil.
	Notify func(ctx context.Context, run Statements) error
	// AndNotify makes one statement of an INSERT and of what Notify does, or is
	// nil.
	AndNotify func(insert string) string
	// Retry reports that a transaction of ours was rolled back for no fault of its
	// own: a deadlock, a lock that was not had in time.
	Retry func(err error) bool
	// IdleLimit follows the claim of a handler's transaction and bounds how long the
	// server keeps that when nothing happens in it: $6 milliseconds. Else a process
	// that died without a word would block the others. Empty where a statement cannot
	// say so.
	IdleLimit string
	// Session is a query for the number of the connection that it runs on. EndIdle
	// ends the connections that keep that one waiting and whose transactions have been
	// idle for [IdleGrace]. Both are empty where no transaction of another waits.
	Session string
	EndIdle func(ctx context.Context, run Statements, session int64) error
	// Answered reports that an error of a commit is the server's answer that
	// nothing is committed.
	Answered func(err error) bool
	// NoLog: the tables of the log are not there.
	NoLog bool
	// Inspect finds settings of the server or file under which a commit can be
	// lost.
	Inspect func(ctx context.Context, run Statements) ([]driver.Finding, error)
	// Grants is what a user must be granted to work on tables, or "".
	Grants func(tables []string, user string) string
	// NoTable reports that an error says that a table does not exist.
	NoTable func(err error) bool
	// SentAtOnce is one statement for [Store.Sent] where there is one. Its
	// arguments are group, holder, leases and sequences as JSON; it returns the
	// number of rows.
	SentAtOnce, SentAndKept string
	// Pending is one statement for [Store.Pending] where there is one. Its
	// arguments are slots as JSON, the most rows of a slot and of all, and channels
	// that are passed over, as JSON.
	Pending string
	// Plan is run in one transaction before Pending and before SentAtOnce: settings
	// of the planner for statements on a table that is empty in one moment and large
	// in the next. Empty where none are needed.
	Plan string
}

// tables are the names that statements may have in braces.
var tables = []string{
	"schema", "outbox", "outbox_sent", "outbox_held", "outbox_discarded", "locks", "leases", "members", "claims", "starts", "epochs",
	"dead_letters", "dead_letter_changes", "parked", "lane_owners", "lane_orders", "log", "log_slots", "positions", "declarations",
}

// Statements runs statements that are written with tokens.
type Statements struct {
	executor Executor
	book     *book
}

// Exec runs a statement and returns how many rows it changed.
func (s Statements) Exec(ctx context.Context, statement string, arguments ...any) (int64, error) {
	r, began := s.book.render(statement), time.Now()
	affected, err := s.executor.Exec(ctx, r.text, r.arrange(arguments)...)
	s.book.sweeper.noted(ctx, began, err)
	return affected, err
}

// Each runs a query and calls scan for each row.
func (s Statements) Each(ctx context.Context, statement string, arguments []any, scan func(Rows) error) (err error) {
	r, began := s.book.render(statement), time.Now()
	defer func() { s.book.sweeper.noted(ctx, began, err) }()
	rows, err := s.executor.Query(ctx, r.text, r.arrange(arguments)...)
	if err != nil {
		return err
	}
	for rows.Next() {
		if err := scan(rows); err != nil {
			_ = rows.Close() // the error of the scan says more
			return err
		}
	}
	if err := rows.Err(); err != nil {
		_ = rows.Close() // the same
		return err
	}
	return rows.Close()
}

// One runs a query for one row at most. It reports whether there was one.
func (s Statements) One(ctx context.Context, statement string, arguments []any, destinations ...any) (found bool, err error) {
	err = s.Each(ctx, statement, arguments, func(rows Rows) error {
		found = true
		return rows.Scan(destinations...)
	})
	return found, err
}

// book renders statements for one dialect and set of tables, each once.
type book struct {
	dialect *Dialect
	tokens  *strings.Replacer
	sweeper sweeper
	done    sync.Map // string → rendered
}

type rendered struct {
	text string
	// order is, for positional placeholders, the argument of each.
	order []int
}

func newBook(d *Dialect) *book {
	pairs := []string{"{now}", d.Now}
	for _, t := range tables {
		pairs = append(pairs, "{"+t+"}", d.Quote(t))
	}
	return &book{dialect: d, tokens: strings.NewReplacer(pairs...)}
}

func (b *book) render(statement string) rendered {
	if r, ok := b.done.Load(statement); ok {
		return r.(rendered) //nolint:forcetypeassert // nothing else is stored
	}
	r := rendered{text: b.tokens.Replace(statement)}
	if b.dialect.Positional || b.dialect.Placeholder != nil {
		r.text, r.order = b.placeholders(r.text)
	}
	b.done.Store(statement, r)
	return r
}

// placeholders rewrites $1, $2, … A dollar sign without a number stays: paths of
// JSON begin with one.
func (b *book) placeholders(text string) (string, []int) {
	var out strings.Builder
	var order []int
	for {
		before, rest, found := strings.Cut(text, "$")
		out.WriteString(before)
		if !found {
			return out.String(), order
		}
		digits := 0
		for digits < len(rest) && rest[digits] >= '0' && rest[digits] <= '9' {
			digits++
		}
		if text = rest[digits:]; digits == 0 {
			out.WriteByte('$')
			continue
		}
		n, _ := strconv.Atoi(rest[:digits])
		if b.dialect.Positional {
			out.WriteByte('?')
			order = append(order, n-1)
		} else {
			out.WriteString(b.dialect.Placeholder(n))
		}
	}
}

func (r rendered) arrange(arguments []any) []any {
	if r.order == nil {
		return arguments
	}
	arranged := make([]any, len(r.order))
	for n, at := range r.order {
		arranged[n] = arguments[at]
	}
	return arranged
}

// in appends values to the arguments and returns the list of their
// placeholders, in parentheses. Lists are filled up to a power of two with the
// last value, so that there are few different statements to prepare.
func in[T any](arguments *[]any, values []T) string {
	var list strings.Builder
	list.WriteByte('(')
	for n := range statementSize(len(values)) {
		if n > 0 {
			list.WriteString(", ")
		}
		*arguments = append(*arguments, values[min(n, len(values)-1)])
		fmt.Fprintf(&list, "$%d", len(*arguments))
	}
	list.WriteByte(')')
	return list.String()
}

// statementSize is the next power of two.
func statementSize(count int) int {
	size := 1
	for size < count {
		size *= 2
	}
	return size
}

// clean makes text that every database stores: valid UTF-8 without NUL.
func clean(text string) string {
	if utf8.ValidString(text) && !strings.Contains(text, "\x00") {
		return text
	}
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}
