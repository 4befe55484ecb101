// Package drivertest is the specification of a Tidings driver, as tests. A
// driver is done when [Run] passes on it; whoever writes one outside this
// repository imports the package and calls it from a test:
//
//	func TestConformance(t *testing.T) {
//		drivertest.Run(t, drivertest.Harness{
//			NewBroker: func(t testing.TB) drivertest.Broker {
//				namespace := newNamespace(t)
//				return drivertest.Broker{
//					Open: func(t testing.TB) driver.Driver { return openDriver(t, namespace) },
//				}
//			},
//		})
//	}
//
// # What is proved
//
// [Cases] is a table: each case has a name, the sentence of the contract that it
// proves, and the [driver.Features] that it needs. What a driver claims is
// proved; what it does not claim is shown to be refused, so that nothing
// degrades silently. A case that fails prints its sentence.
//
// Most cases run whole buses of package tidings over the driver, since that is
// how a driver is used; a few call it directly. Where a case needs several
// processes it opens several driver values over one broker, and a crash is a
// driver value that from one moment on neither settles nor delivers. That a
// killed process loses nothing has to be tried with a real one besides.
//
// # How long it takes
//
// The suite waits for events, never for time, except where waiting is what a
// case proves. With an in-process broker it takes seconds. Cases run in parallel
// as far as -parallel allows; each has a broker namespace of its own.
package drivertest
