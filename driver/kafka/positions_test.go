package kafka

import (
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A new cluster has no coordinator for its first group until it has made the
// topic of positions: that is waited for, not an error of the start.
func TestANewClusterHasNoCoordinatorYet(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), single)
	var refused atomic.Int64
	cluster.ControlKey(int16(kmsg.OffsetFetch), func(request kmsg.Request) (kmsg.Response, error, bool) {
		if refused.Add(1) > 3 {
			return nil, nil, false
		}
		cluster.KeepControl()
		asked := request.(*kmsg.OffsetFetchRequest)
		answer := asked.ResponseKind().(*kmsg.OffsetFetchResponse)
		answer.ErrorCode = kerr.CoordinatorNotAvailable.Code
		for _, group := range asked.Groups {
			g := kmsg.NewOffsetFetchResponseGroup()
			g.Group, g.ErrorCode = group.Group, kerr.CoordinatorNotAvailable.Code
			answer.Groups = append(answer.Groups, g)
		}
		return answer, nil, true
	})
	s := newSink()
	start(t, d, subscription("x.y", "a.b.c"), s)
	publish(t, d, numbered("a.b.c", "k", 0, 2)...)
	eventually(t, "two", func() bool { return s.count() == 2 })
	if refused.Load() < 2 {
		t.Errorf("the broker refused %d times: nothing was proven", refused.Load())
	}
}
