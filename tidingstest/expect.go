package tidingstest

import (
	"fmt"
	"testing"

	"github.com/tidings-go/tidings"
)

// Expect settles and returns the events of a contract that were published, in
// that order, and for which every match is true: at least one. When there is
// none it ends the test and prints what happened. Events of another version are
// not among them. It is for the goroutine of t.
func Expect[P any](t testing.TB, b *Bus, contract tidings.Contract[P], matches ...func(tidings.Event[P]) bool) []tidings.Event[P] {
	t.Helper()
	b.settle(t)
	found := published(b.story.published(), contract, matches)
	if len(found) == 0 {
		t.Fatalf("tidingstest: no %s was published%s:\n%s", contract, thatMatches(matches), b.account())
	}
	return found
}

// ExpectNone settles and fails the test when an event of the contract was
// published for which every match is true. It needs no waiting: nothing is left
// that could publish one later. It is for the goroutine of t.
func ExpectNone[P any](t testing.TB, b *Bus, contract tidings.Contract[P], matches ...func(tidings.Event[P]) bool) {
	t.Helper()
	b.settle(t)
	if found := published(b.story.published(), contract, matches); len(found) > 0 {
		t.Errorf("tidingstest: %d × %s%s was published, none was expected; the first is %s:\n%s", len(found), contract, thatMatches(matches), found[0], b.account())
	}
}

// published returns the events of a contract for which every match is true.
func published[P any](events []tidings.DomainEvent, contract tidings.Contract[P], matches []func(tidings.Event[P]) bool) (found []tidings.Event[P]) {
next:
	for _, event := range events {
		e, ok := event.(tidings.Event[P])
		if !ok || e.Type() != contract.Type() || e.Version() != contract.Version() {
			continue
		}
		for _, match := range matches {
			if !match(e) {
				continue next
			}
		}
		found = append(found, e)
	}
	return found
}

func thatMatches[P any](matches []func(tidings.Event[P]) bool) string {
	switch len(matches) {
	case 0:
		return ""
	case 1:
		return " that matches"
	}
	return fmt.Sprintf(" that matches all %d conditions", len(matches))
}
