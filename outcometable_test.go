package tidings

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the table of outcomes into docs/design.md")

// cause is one way in which an attempt ends.
type cause struct {
	name string
	err  error // what the handler returned; nil with a name that says so is nil
	only ending
}

// causes are all there are. Those with an ending of their own come from the engine and
// not from a handler.
func causes() []cause {
	failed := errors.New("failed")
	return []cause{
		{name: "nil", only: endHandled},
		{name: "an error", err: failed},
		{name: "Permanent", err: Permanent(failed)},
		{name: "RetryAfter", err: RetryAfter(failed, time.Minute)},
		{name: "a panic", err: &PanicError{Value: "failed"}},
		{name: "Goexit", err: errGoexit},
		{name: "its timeout", err: context.DeadlineExceeded},
		{name: "ErrDuplicate", err: ErrDuplicate},
		{name: "ErrDuplicateDiffers", err: ErrDuplicateDiffers},
		{name: "ErrFenced", err: ErrFenced},
		{name: "ErrLost", err: ErrLost},
		{name: "ErrStopping", err: ErrStopping},
		{name: "ErrUnavailable", err: ErrUnavailable},
		{name: "ErrCrashed", err: ErrCrashed},
		{name: "a store failed", only: endStore},
	}
}

func (c cause) ending(claims bool) ending {
	if c.err == nil {
		return c.only
	}
	i := &item{reaction: &Reaction{ownClaim: claims}}
	if claims {
		i.fence = 1
	}
	return take(fmt.Errorf("wrapped: %w", c.err)).ending(i)
}

// The table of what becomes of an event: for each way in which an attempt ends, by
// standing and policy, while attempts are left / after the last. "+1" uses an attempt.
// A star stands for every policy, or every standing.
const outcomesWanted = `
nil                | *               | *          | settle                            | settle
ErrDuplicate       | *               | *          | settle                            | settle
ErrDuplicateDiffers| *               | *          | settle                            | settle
ErrFenced          | *               | *          | retry Backoff.Initial             | retry Backoff.Initial
ErrLost            | *               | *          | retry Backoff.Initial             | retry Backoff.Initial
ErrStopping        | *               | *          | retry Backoff.Initial             | retry Backoff.Initial
ErrUnavailable     | *               | *          | retry Backoff of the third attempt| retry Backoff of the third attempt
a store failed     | *               | *          | retry Backoff of the third attempt| retry Backoff of the third attempt

an error, a panic, Goexit, its timeout | live            | DeadLetter | retry Backoff +1   | dead letter exhausted +1
an error, a panic, Goexit, its timeout | live            | Park       | retry Backoff +1   | park exhausted +1
an error, a panic, Goexit, its timeout | live            | Block      | retry Backoff +1   | retry Backoff.Max, without end exhausted +1
an error, a panic, Goexit, its timeout | parked head     | DeadLetter | retry Backoff +1   | dead letter exhausted +1
an error, a panic, Goexit, its timeout | parked head     | Park       | retry Backoff +1   | retry ParkBackoff exhausted +1
an error, a panic, Goexit, its timeout | parked head     | Block      | retry Backoff +1   | retry Backoff.Max, without end exhausted +1
an error, a panic, Goexit, its timeout | redriven letter | *          | retry Backoff +1   | dead letter exhausted +1

RetryAfter         | live            | DeadLetter | retry as it says +1 | dead letter exhausted +1
RetryAfter         | live            | Park       | retry as it says +1 | park exhausted +1
RetryAfter         | live            | Block      | retry as it says +1 | retry Backoff.Max, without end exhausted +1
RetryAfter         | parked head     | DeadLetter | retry as it says +1 | dead letter exhausted +1
RetryAfter         | parked head     | Park       | retry as it says +1 | retry as it says exhausted +1
RetryAfter         | parked head     | Block      | retry as it says +1 | retry Backoff.Max, without end exhausted +1
RetryAfter         | redriven letter | *          | retry as it says +1 | dead letter exhausted +1

Permanent          | live            | DeadLetter | dead letter permanent +1                   | dead letter permanent +1
Permanent          | live            | Park       | park permanent +1                          | park permanent +1
Permanent          | live            | Block      | retry Backoff.Max, without end permanent +1| retry Backoff.Max, without end permanent +1
Permanent          | parked head     | DeadLetter | dead letter permanent +1                   | dead letter permanent +1
Permanent          | parked head     | Park       | retry ParkBackoff permanent +1             | retry ParkBackoff permanent +1
Permanent          | parked head     | Block      | retry Backoff.Max, without end permanent +1| retry Backoff.Max, without end permanent +1
Permanent          | redriven letter | *          | dead letter permanent +1                   | dead letter permanent +1

ErrCrashed         | live            | DeadLetter | dead letter crashed +1                     | dead letter crashed +1
ErrCrashed         | live            | Park       | park crashed +1                            | park crashed +1
ErrCrashed         | live            | Block      | retry Backoff.Max, without end crashed +1  | retry Backoff.Max, without end crashed +1
ErrCrashed         | parked head     | DeadLetter | dead letter crashed +1                     | dead letter crashed +1
ErrCrashed         | parked head     | Park       | retry ParkBackoff crashed +1               | retry ParkBackoff crashed +1
ErrCrashed         | parked head     | Block      | retry Backoff.Max, without end crashed +1  | retry Backoff.Max, without end crashed +1
ErrCrashed         | redriven letter | *          | dead letter crashed +1                     | dead letter crashed +1
`

// short is an outcome as the table has it.
func (o outcome) short() string {
	words := []string{o.act.String()}
	for _, word := range []string{o.pause.String(), o.reason} {
		if word != "" {
			words = append(words, word)
		}
	}
	if o.counts {
		words = append(words, "+1")
	}
	return strings.Join(words, " ")
}

// cell is one combination.
type cell struct {
	cause    string
	standing standing
	policy   Policy
}

// wantedOutcomes reads the table.
func wantedOutcomes(t *testing.T) map[cell][2]string {
	t.Helper()
	all := make(map[cell][2]string)
	for line := range strings.Lines(outcomesWanted) {
		columns := strings.Split(line, "|")
		if len(columns) != 5 {
			continue
		}
		for n := range columns {
			columns[n] = strings.TrimSpace(columns[n])
		}
		for name := range strings.SplitSeq(columns[0], ", ") {
			for s := range standings {
				for _, p := range []Policy{DeadLetter, Park, Block} {
					if columns[1] != "*" && columns[1] != s.String() || columns[2] != "*" && columns[2] != policyName(p) {
						continue
					}
					of := cell{name, s, p}
					if _, twice := all[of]; twice {
						t.Errorf("%v is in the table twice", of)
					}
					all[of] = [2]string{columns[3], columns[4]}
				}
			}
		}
	}
	return all
}

func policyName(p Policy) string {
	return map[Policy]string{DeadLetter: "DeadLetter", Park: "Park", Block: "Block"}[p]
}

func TestWhatBecomesOfAnEventIsInOneTable(t *testing.T) {
	wanted := wantedOutcomes(t)
	rows := 0
	for _, c := range causes() {
		for s := range standings {
			for _, p := range []Policy{DeadLetter, Park, Block} {
				want, found := wanted[cell{c.name, s, p}]
				if !found {
					t.Errorf("%s, %v, %s is not in the table", c.name, s, policyName(p))
					continue
				}
				for n, last := range []bool{false, true} {
					o := decide(question{ending: c.ending(true), standing: s, policy: p, last: last})
					if o.short() != want[n] {
						t.Errorf("%s, %v, %s, the last attempt %v: %s, want %s", c.name, s, policyName(p), last, o.short(), want[n])
					}
					if o.why == "" {
						t.Errorf("%s, %v, %s: no reason is given", c.name, s, policyName(p))
					}
					rows++
				}
			}
		}
	}
	if want := 15 * 3 * 3 * 2; rows != want {
		t.Errorf("%d rows, want %d", rows, want)
	}
}

// A payload that cannot be read is a dead letter whatever the policy: no retry makes it
// readable.
func TestAnUndecodablePayloadIsADeadLetterUnderEveryPolicy(t *testing.T) {
	i := &item{reaction: &Reaction{}, reason: reasonUndecodable}
	for s := range standings {
		for _, p := range []Policy{DeadLetter, Park, Block} {
			if o := decide(question{ending: take(errors.New("no JSON")).ending(i), standing: s, policy: p}); o.short() != "dead letter undecodable +1" {
				t.Errorf("%v, %s: %s", s, policyName(p), o.short())
			}
		}
	}
}

// What only means something from a handler with a claim, or a fence, of its own is an
// error like any other elsewhere.
func TestErrorsOfOwnClaimsAreOrdinaryErrorsElsewhere(t *testing.T) {
	for _, err := range []error{ErrDuplicate, ErrDuplicateDiffers, ErrUnavailable, ErrFenced} {
		if e := (cause{err: err}).ending(false); e != endFailed {
			t.Errorf("%v: ending %d, want an ordinary failure", err, e)
		}
	}
}

// While the outage breaker has tripped, failures of live and parked events use no
// attempt. What is the event's own fault counts all the same.
func TestFailuresInAnOutageUseNoAttempt(t *testing.T) {
	for _, c := range causes() {
		for s := range standings {
			for _, p := range []Policy{DeadLetter, Park, Block} {
				q := question{ending: c.ending(true), standing: s, policy: p, last: true}
				usual := decide(q).short()
				q.outage = true
				want := usual
				if q.ending == endFailed || q.ending == endLater {
					if s != redrivenLetter {
						want = "retry the breaker's guarded"
					}
				}
				if got := decide(q).short(); got != want {
					t.Errorf("%s, %v, %s: %s, want %s", c.name, s, policyName(p), got, want)
				}
			}
		}
	}
}

const (
	tableBegin = "<!-- outcomes: written by go test . -run TestTheTableOfOutcomes -update -->\n"
	tableEnd   = "<!-- outcomes end -->\n"
)

// outcomeTable is the table as the documentation has it: equal rows are one.
func outcomeTable() string {
	var b strings.Builder
	b.WriteString("| how the attempt ended | the event is | policy | attempts left | after the last | because |\n| --- | --- | --- | --- | --- | --- |\n")
	type row struct{ standing, policy, left, last, why string }
	var order []row
	names := make(map[row][]string)
	for _, c := range causes() {
		var rows []row
		for s := range standings {
			var ofStanding []row
			for _, p := range []Policy{DeadLetter, Park, Block} {
				q := question{ending: c.ending(true), standing: s, policy: p}
				left := decide(q)
				q.last = true
				last := decide(q)
				ofStanding = append(ofStanding, row{s.String(), policyName(p), left.short(), last.short(), last.why})
			}
			rows = append(rows, join(ofStanding, func(r *row) *string { return &r.policy })...)
		}
		for _, r := range join(rows, func(r *row) *string { return &r.standing }) {
			if names[r] == nil {
				order = append(order, r)
			}
			names[r] = append(names[r], c.name)
		}
	}
	for _, r := range order {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", strings.Join(names[r], ", "), r.standing, r.policy, r.left, r.last, r.why)
	}
	return b.String()
}

// join makes one row of all where they differ in one column only.
func join[R comparable](rows []R, column func(*R) *string) []R {
	first := rows[0]
	*column(&first) = "any"
	for _, r := range rows {
		*column(&r) = "any"
		if r != first {
			return rows
		}
	}
	return []R{first}
}

func TestTheTableOfOutcomesIsInTheDocumentation(t *testing.T) {
	const path = "docs/design.md"
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, began := strings.Cut(string(page), tableBegin)
	had, after, ended := strings.Cut(rest, tableEnd)
	if !began || !ended {
		t.Fatalf("%s has no place for the table: %q and %q", path, tableBegin, tableEnd)
	}
	want := outcomeTable()
	if had == want {
		return
	}
	if !*update {
		t.Fatalf("the table in %s is not the one of the code: go test . -run TestTheTableOfOutcomes -update writes it", path)
	}
	if err := os.WriteFile(path, []byte(before+tableBegin+want+tableEnd+after), 0o600); err != nil {
		t.Fatal(err)
	}
}
