// Package deployments finds out what a driver loses, doubles and reorders while one
// release of a service follows another. It is the third part of package drivertest:
// everything works here, and only the releases differ.
//
// # How it works
//
// A release is a set of contracts with their versions, and the name of the
// subscription that handles them. An instance is a bus in this process that runs a
// release, with a driver value and store handles of its own. A change is what the
// new release has more, less or otherwise than the old one ([Changes]); a schedule
// is how instances of one follow those of the other ([Schedules]):
//
//   - stop and start: all instances of the old release stop, then those of the new
//     one start.
//   - rolling: each instance in turn is stopped and followed by a new one, so that
//     both releases run at the same time.
//   - canary for long: one instance of the new release beside two of the old one for
//     most of the load, then the other two follow, or it is taken back.
//
// All the time a publisher publishes, for six aggregates in turn. From the moment
// that an instance of the new release runs it publishes what that release brought,
// too, for every second aggregate, and goes on with it when the release is taken
// back. When the schedule is over and the last release has handled all that it can,
// the closing phase runs one instance that has everything, until nothing is left.
//
// # What is counted
//
//   - published: events for which Publish returned nil.
//   - kept: of these, how many were neither handled nor rightly ignored when the last
//     release of the schedule had done all it can: they wait for the closing phase.
//   - ignored: what the last release says it ignores, and nobody handled.
//   - lost: what is not handled after the closing phase either, but for what is
//     ignored. Also what was handled without its effect in the database.
//   - order broken: an event was started for the first time before an earlier one of
//     its channel and aggregate was handled for the first time.
//   - double effects: rows too many that handlers wrote in the inbox's transaction.
//   - dead: dead letters. There are to be none.
//
// While two releases run beside each other the suite also demands progress: what all
// instances of a channel can read is handled meanwhile, and so is what lies on a
// channel that only some of them have.
package deployments
