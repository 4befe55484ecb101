package driver

import (
	"context"
	"errors"
)

// ErrUnfinished says that events of an aggregate are not finished: they are not
// sent, not read or parked.
var ErrUnfinished = errors.New("tidings: events of this aggregate are not finished")

// ForgetRequest names an aggregate whose data is to be erased.
type ForgetRequest struct {
	AggregateID string
	// Dry counts and erases nothing.
	Dry bool
	// Unfinished allows to erase events that are not sent, not read by every
	// subscription or parked: nobody will handle them. Without it they are
	// ErrUnfinished, and nothing is erased.
	Unfinished bool
	// Keys erases the dedup keys too, which name the aggregate: an event of it
	// that is delivered again is handled again.
	Keys bool
}

// Forgotten is what was erased, or would be, in one place.
type Forgotten struct {
	// Place is a table or a key: "tidings_dead_letters".
	Place string `json:"place"`
	Count int64  `json:"count"`
	// What happens to it: a few words.
	What string `json:"what"`
	// Kept says that it is not erased, and why is in What.
	Kept bool `json:"kept,omitempty"`
	// Unfinished says that these are events that somebody still waits for.
	Unfinished bool `json:"unfinished,omitempty"`
}

// Forgetter is implemented by stores that hold data of aggregates. It may be
// called at once with everything else.
type Forgetter interface {
	// ForgetAggregate erases, in one step where the store can, and says what in each place;
	// with ErrUnfinished it says what there is.
	ForgetAggregate(ctx context.Context, request ForgetRequest) ([]Forgotten, error)
}
