// Package tidingstest is the test kit for code that uses Tidings: a bus whose
// time and order a test controls.
//
//	bus := tidingstest.NewBus(t)
//	billing.Register(bus.Module("billing"), profiles)
//	err := bus.Publish(ctx, identityevents.UserCreated.New("u-1", payload))
//	tidingstest.Expect(bus, billingevents.ProfileCreated)
//	tidingstest.ExpectNone(bus, billingevents.SubscriptionActivated)
//
// [Bus.Settle] returns exactly when everything that was published, and all that
// it caused, has finished, so that absence needs no waiting. [Expect] and
// [ExpectNone] settle first. Time is virtual: a retry after an hour takes none.
//
// # Delivery
//
// As the engine does it everywhere: retries, dead letters, dedup. Every event
// passes the codec, so that a handler sees what the wire would give it.
//
// # Order
//
// Per subscription, channel and aggregate, and nothing more: which channel of
// which subscription is next is drawn by chance, from a seed that a failing test
// prints. Code that relies on order across channels passes in memory and fails
// here. TIDINGS_TEST_SEED or [Seed] repeats a run.
//
// # Duplicates
//
// The bus makes none. Publishing an event value twice makes one.
//
// # What it is not
//
// It does not run handlers in parallel, and it is no broker: nothing outlives the
// test. It needs the standard library and Tidings only, and works inside and
// outside testing/synctest.
package tidingstest
