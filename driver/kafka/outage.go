package kafka

import (
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/outage"
)

// connections tells an outage what the client sees. A single failed connection is
// none: another broker of the cluster may answer.
type connections struct{ *outage.Outage }

var (
	_ kgo.HookBrokerConnect = connections{}
	_ kgo.HookBrokerE2E     = connections{}
)

func newConnections(sink driver.Sink, after time.Duration) connections {
	return connections{outage.New(sink, after, "no broker answers")}
}

// OnBrokerConnect implements [kgo.HookBrokerConnect].
func (c connections) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	if err != nil {
		c.Failed(err)
	}
}

// OnBrokerE2E implements [kgo.HookBrokerE2E].
func (c connections) OnBrokerE2E(_ kgo.BrokerMetadata, _ int16, e2e kgo.BrokerE2E) {
	if err := e2e.Err(); err != nil {
		c.Failed(err)
		return
	}
	c.Answered()
}
