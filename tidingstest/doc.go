// Package tidingstest is the test kit for code that uses Tidings: a bus whose
// time and order a test controls.
//
//	bus := tidingstest.NewBus(t)
//	billing.Register(bus.Module("billing"), profiles)
//	err := bus.Publish(ctx, identityevents.UserCreated.New("u-1", payload))
//	tidingstest.Expect(t, bus, billingevents.ProfileCreated)
//	tidingstest.ExpectNone(t, bus, billingevents.SubscriptionActivated)
//
// [Bus.Settle] returns exactly when everything that was published, and all that
// it caused, has finished, so that absence needs no waiting. [Expect] and
// [ExpectNone] settle first. Time is virtual: a retry after an hour takes none.
// What a handler starts and does not wait for, nobody sees.
//
// # Delivery
//
// As the engine does it everywhere: retries, dead letters, dedup. Every event
// passes the codec, so that a handler sees what the wire would give it: a field
// without a tag, a number that loses digits or a type that does not read what it
// wrote fails here and not on the first broker.
//
// # Order
//
// Per subscription, channel and aggregate, and nothing more: which channel of
// which subscription is next is drawn by chance, from a seed that a failing test
// prints. Code that relies on order across channels passes in memory and fails
// here. TIDINGS_TEST_SEED or [Seed] repeats the order of channels. When lanes
// retry, their backoff's jitter is not part of the seed: a test whose order has
// to be the same there too says Backoff.Jitter -1.
//
// # Duplicates
//
// The bus makes none. Publishing an event value twice makes one.
//
// # What it is not
//
// One handler runs at a time, so it finds no data race between handlers, and it
// is no broker: nothing outlives the test. It needs the standard library and
// Tidings only, and works inside and outside testing/synctest.
//
// Virtual time stands still while a handler runs. One that waits for the end of
// its context gets it after ten seconds of real time, and at once inside
// testing/synctest; one that does not return then fails the test.
package tidingstest
