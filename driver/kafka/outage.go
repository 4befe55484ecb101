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

// answers is the concern of all that is asked.
const answers = "brokers"

// silentFor is how much longer than a heartbeat no broker may answer a consumer that
// has joined: it asks for records or gives a sign of life all the time.
const silentFor = 3 * time.Second

func newConnections(sink driver.Sink, after time.Duration) connections {
	c := connections{outage.New(sink, after, "no broker answers")}
	c.Patience(after + silentFor)
	return c
}

// watch takes silence for an outage from now on: an answer that does not come fails
// only when the client gives the request up.
func (c connections) watch() { c.Ask(answers) }

// OnBrokerConnect implements [kgo.HookBrokerConnect].
func (c connections) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	if err != nil {
		c.FailedAt(answers, err)
	}
}

// OnBrokerE2E implements [kgo.HookBrokerE2E].
func (c connections) OnBrokerE2E(_ kgo.BrokerMetadata, _ int16, e2e kgo.BrokerE2E) {
	if err := e2e.Err(); err != nil {
		c.FailedAt(answers, err)
		return
	}
	c.AnsweredAt(answers)
}
