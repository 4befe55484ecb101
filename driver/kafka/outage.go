package kafka

import (
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings/driver"
)

// outage tells the sink when no broker answers, and when one does again. A
// single failed connection is none: another broker of the cluster may answer.
type outage struct {
	sink  driver.Sink
	after time.Duration

	mu     sync.Mutex
	since  time.Time // of the first failure with no answer after it, or zero
	told   bool
	closed bool
}

var (
	_ kgo.HookBrokerConnect = (*outage)(nil)
	_ kgo.HookBrokerE2E     = (*outage)(nil)
)

func newOutage(sink driver.Sink, after time.Duration) *outage {
	return &outage{sink: sink, after: after}
}

// OnBrokerConnect implements [kgo.HookBrokerConnect].
func (o *outage) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	if err != nil {
		o.failed(err)
	}
}

// OnBrokerE2E implements [kgo.HookBrokerE2E].
func (o *outage) OnBrokerE2E(_ kgo.BrokerMetadata, _ int16, e2e kgo.BrokerE2E) {
	if err := e2e.Err(); err != nil {
		o.failed(err)
		return
	}
	o.answered()
}

func (o *outage) failed(err error) {
	now := time.Now()
	o.mu.Lock()
	if o.since.IsZero() {
		o.since = now
	}
	tell := !o.told && !o.closed && now.Sub(o.since) >= o.after
	o.told = o.told || tell
	o.mu.Unlock()
	if tell {
		o.sink.Report(driver.Report{Kind: driver.ReportOutage, Err: err, Text: "no broker answers"})
	}
}

func (o *outage) answered() {
	o.mu.Lock()
	since, told := o.since, o.told && !o.closed
	o.since, o.told = time.Time{}, false
	o.mu.Unlock()
	if told {
		o.sink.Report(driver.Report{Kind: driver.ReportRecovered, Duration: time.Since(since)})
	}
}

func (o *outage) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
}
