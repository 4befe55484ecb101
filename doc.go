// Package tidings is typed domain events between the modules of a Go
// application: in one process today, over a broker tomorrow, without touching a
// module.
//
// A module that owns an event declares its contract once, in a package that
// others may import:
//
//	package identityevents
//
//	type UserCreatedPayload struct {
//		UserID string `json:"userId"`
//		Email  string `json:"email"`
//		Name   string `json:"name"`
//	}
//
//	var UserCreated = tidings.Define[UserCreatedPayload]("identity.user.created", 1, tidings.Once)
//
// It publishes through its face of the bus, and another module reacts:
//
//	identity := bus.Module("identity")
//	err := identity.Publish(ctx, identityevents.UserCreated.New(user.ID, identityevents.UserCreatedPayload{…}))
//
//	billing := bus.Module("billing")
//	billing.Subscribe("create-default-profile", nil, identityevents.UserCreated.On(app.createDefaultProfile))
//
// [Bus.Run] connects everything and blocks. Which broker is behind it is the
// business of whoever calls [New], usually package setup.
//
// # Delivery
//
// A handler decides with what it returns: nil is handled, an error is retried
// with backoff, [Permanent] is not, [RetryAfter] says when. What is not handled
// after SubscribeOptions.MaxAttempts becomes a dead letter, is parked, or
// blocks its lane: never dropped. On a durable driver each event for which
// Publish returned nil is handled or dead-lettered at least once, whatever
// crashes. In memory it is best effort: lost with the process.
//
// # Order
//
// For one subscription, channel and aggregate, event n is finished (handled or
// dead) before event n+1 is first started, on every driver that keeps order.
// Different aggregates run in parallel, and a retrying event holds up its own
// aggregate only. Between channels there is no order.
//
// # Duplicates
//
// A delivery can come again: after a crash, after a change of owner, or because
// a publisher tried again. The engine suppresses what it has handled, by a key
// that the contract's [Occurrence] decides; without Options.Claims it remembers
// within the process only. Handlers whose effects must happen once write a
// claim in their own transaction.
//
// # What is not promised
//
// Effects that happen exactly once without such a claim; order across
// aggregates or channels; that a handler which ignores its cancelled context
// does not overlap its successor in another process.
package tidings
