package tidingstest

import (
	"fmt"

	"github.com/tidings-go/tidings"
)

// Published settles and returns the events of a contract that were published, in
// that order. Events of another version are not among them.
func Published[P any](b *Bus, contract tidings.Contract[P]) []tidings.Event[P] {
	b.t.Helper()
	b.Settle()
	return typed(b.story.published(), contract)
}

func typed[P any](events []tidings.DomainEvent, contract tidings.Contract[P]) []tidings.Event[P] {
	var found []tidings.Event[P]
	for _, e := range events {
		if e, ok := e.(tidings.Event[P]); ok && e.Type() == contract.Type() && e.Version() == contract.Version() {
			found = append(found, e)
		}
	}
	return found
}

// Expect settles and returns the first event of a contract that was published
// and for which every match is true. When there is none it ends the test and
// prints what happened.
func Expect[P any](b *Bus, contract tidings.Contract[P], matches ...func(tidings.Event[P]) bool) tidings.Event[P] {
	b.t.Helper()
	found := filter(Published(b, contract), matches)
	if len(found) == 0 {
		b.t.Fatalf("tidingstest: no %s was published%s:\n%s", contract, thatMatches(matches), b.Story())
		return tidings.Event[P]{}
	}
	return found[0]
}

// ExpectNone settles and fails the test when an event of the contract was
// published for which every match is true.
func ExpectNone[P any](b *Bus, contract tidings.Contract[P], matches ...func(tidings.Event[P]) bool) {
	b.t.Helper()
	if found := filter(Published(b, contract), matches); len(found) > 0 {
		b.t.Errorf("tidingstest: %d × %s%s was published, none was expected; the first is %s:\n%s", len(found), contract, thatMatches(matches), found[0], b.Story())
	}
}

func filter[P any](events []tidings.Event[P], matches []func(tidings.Event[P]) bool) (found []tidings.Event[P]) {
next:
	for _, e := range events {
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
	if len(matches) == 0 {
		return ""
	}
	return fmt.Sprintf(" that matches (%d conditions)", len(matches))
}
