package kafka

import (
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tidings-go/tidings/driver/drivertest"
)

// A new cluster has no coordinator for its first group until it has made the
// topic of positions: that is waited for, not an error of the start.
func TestANewClusterHasNoCoordinatorYet(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), single)
	const refusals = 12 // more than the client tries by itself
	var refused atomic.Int64
	cluster.ControlKey(int16(kmsg.FindCoordinator), func(request kmsg.Request) (kmsg.Response, error, bool) {
		if refused.Add(1) > refusals {
			return nil, nil, false
		}
		cluster.KeepControl()
		asked := request.(*kmsg.FindCoordinatorRequest)
		answer := asked.ResponseKind().(*kmsg.FindCoordinatorResponse)
		answer.ErrorCode = kerr.CoordinatorNotAvailable.Code
		for _, key := range asked.CoordinatorKeys {
			c := kmsg.NewFindCoordinatorResponseCoordinator()
			c.Key, c.ErrorCode = key, kerr.CoordinatorNotAvailable.Code
			answer.Coordinators = append(answer.Coordinators, c)
		}
		return answer, nil, true
	})
	s := drivertest.NewSink()
	drivertest.Start(t, d, subscription("x.y", "a.b.c"), s)
	publish(t, d, numbered("a.b.c", "k", 0, 2)...)
	drivertest.Eventually(t, "two", func() bool { return s.Count() == 2 })
	if refused.Load() <= refusals {
		t.Errorf("the broker refused %d times: nothing was proven", refused.Load())
	}
}
