// Package setup makes a bus from the environment. It is the one place that
// knows every driver, so that no module has to.
//
//	bus, err := setup.FromEnv(ctx, nil)
//
// [FromEnv] reads the variables that [Config] lists; [New] takes a Config that
// was filled in another way, so that a dependency-injection library can call it.
//
// # Delivery, order, duplicates
//
// They are the driver's that EVENT_DRIVER names; see its package. What setup adds
// is refusal: the in-memory driver, chosen by name or by default, does not start
// where EVENT_ENV is production, an unknown name is never a silent in-memory, and
// a broker that does not answer is an error that names its variable.
package setup
