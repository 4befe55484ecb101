package driver

import "context"

// Declaration is one event type that a release of a subscription handles, and the
// channel that it lies on.
type Declaration struct {
	Channel string `json:"channel"`
	Type    string `json:"type"`
}

// Declarations is implemented by a driver that keeps, beside the positions of a
// subscription, which event types its releases have handled so far. Instances of
// several releases run at the same time while one is deployed or rolled back; what
// one of them does not know, another may. The engine never finishes an event of a
// declared type that this release lacks.
//
// The record is a union: declaring adds to it, and only ForgetType takes away. All
// methods are safe for concurrent use, also by several processes; of what two add at
// the same time nothing is lost.
type Declarations interface {
	// Declare adds what this release handles, as durably as the driver keeps
	// positions, and returns the whole record, sorted by channel and type. The engine
	// calls it before Driver.Subscribe.
	Declare(ctx context.Context, subscription string, handled []Declaration) (all []Declaration, err error)

	// Declared returns the record as it is now: what another process declared before
	// the call began is in it. Empty when the subscription is not known.
	Declared(ctx context.Context, subscription string) (all []Declaration, err error)

	// ForgetType takes an event type out of the record, so that instances without a
	// reaction to it finish its events unseen. When it was the last type of its
	// channel, the position there goes with it. It reports whether the record had the
	// type. A driver whose position cannot be deleted under those who read the channel
	// leaves both, and returns an error that wraps [ErrInUse].
	ForgetType(ctx context.Context, subscription, eventType string) (known bool, err error)
}
