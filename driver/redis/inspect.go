package redis

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/redis/internal/wire"
)

var (
	_ driver.Inspector   = (*Driver)(nil)
	_ driver.Provisioner = (*Driver)(nil)
)

// Inspect implements [driver.Inspector]: memory and clock of the server. Pub/sub
// keeps nothing, so no setting makes it weaker; claims that share the server are
// lost where keys with an end are evicted.
func (d *Driver) Inspect(ctx context.Context, _ driver.Topology, _ driver.InspectOptions) (findings []driver.Finding, err error) {
	if !d.calls.Enter() {
		return nil, errClosed
	}
	defer d.calls.Leave()
	for _, f := range wire.InspectServer(ctx, d.client) {
		if f.Check == "redis-eviction" {
			f.Why = "where claims are on this server, Redis may delete them: events are handled twice"
			findings = append(findings, f)
		}
	}
	return append(findings, wire.InspectState(ctx, d.client)...), nil
}

// Provision implements [driver.Provisioner]: channels of pub/sub need not be made.
func (d *Driver) Provision(context.Context, driver.Topology, bool) ([]driver.Resource, error) {
	return nil, nil
}

// Grants implements [driver.Provisioner]: one ACL SETUSER line, with what package
// store/redis needs for claims.
func (d *Driver) Grants(topology driver.Topology, principal string) []driver.Grant {
	if len(topology.Channels)+len(topology.Subscriptions) == 0 {
		return nil
	}
	prefix := d.topic("")
	keys := []string{"&" + prefix + "*", "~" + prefix + "events:*", "~" + prefix + "claims:*", "~" + prefix + "dead:*", "~{" + prefix + "dead:*"}
	commands := []string{"+@connection", "+@pubsub", "+@scripting", "-script|flush", "-script|kill", "+@hash", "+@sortedset", "+@set", "+xadd", "+get", "+set", "+del", "+pexpire", "+pexpireat", "+time", "+info", "+config|get", "+cluster|slots", "+cluster|shards"}
	return []driver.Grant{{
		What: "Redis ACL",
		Text: fmt.Sprintf("ACL SETUSER %s on '>%s' %s %s\n", cmp.Or(principal, "<user>"), "<password>", strings.Join(keys, " "), strings.Join(commands, " ")),
	}}
}
