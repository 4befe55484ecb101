package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tidings-go/tidings/driver"
)

// topologyFlags say what the application declares. The command has no Go types of
// it, so it is told.
type topologyFlags struct {
	files         []string
	published     []string
	subscriptions []string
}

const topologyHelp = `What the application declares comes from its own description: it prints
bus.Describe() as JSON, and --topology names that file (- is standard input; several
services may be given, one file each). Where there is none, --publish CHANNEL and
--subscription NAME=CHANNEL[,CHANNEL] say it.`

func (f *topologyFlags) register(command *cobra.Command) {
	command.Flags().StringArrayVar(&f.files, "topology", nil, "file with what the application declares, as bus.Describe() gives it")
	command.Flags().StringArrayVar(&f.published, "publish", nil, "a channel that the application publishes to")
	command.Flags().StringArrayVar(&f.subscriptions, "subscription", nil, "NAME=CHANNEL[,CHANNEL] of a subscription")
}

// read returns what was said; empty when nothing was.
func (f *topologyFlags) read(s *session) (topology driver.Topology, err error) {
	topology.Format = driver.TopologyFormat
	for _, name := range f.files {
		one, err := s.topologyFile(name)
		if err != nil {
			return topology, usage("--topology %s: %w", name, err)
		}
		topology.Merge(one)
	}
	for _, channel := range f.published {
		if channel == "" {
			return topology, usage("--publish is empty: name a channel")
		}
		topology.Merge(driver.Topology{Channels: []driver.TopologyChannel{{Name: channel, Types: []string{channel}, Published: true}}})
	}
	for _, text := range f.subscriptions {
		name, list, found := strings.Cut(text, "=")
		channels := strings.Split(list, ",")
		if !found || name == "" || list == "" {
			return topology, usage("--subscription is %q: NAME=CHANNEL[,CHANNEL], for example billing.ledger=orders.order.placed", text)
		}
		one := driver.Topology{Subscriptions: []driver.TopologySubscription{{Name: name, Channels: channels, Types: channels}}}
		for _, channel := range channels {
			one.Channels = append(one.Channels, driver.TopologyChannel{Name: channel, Types: []string{channel}})
		}
		topology.Merge(one)
	}
	return topology, nil
}

func (s *session) topologyFile(name string) (topology driver.Topology, err error) {
	var text []byte
	if name == "-" {
		text, err = io.ReadAll(io.LimitReader(s.streams.in, 16<<20))
	} else {
		text, err = os.ReadFile(name)
	}
	if err != nil {
		return topology, err
	}
	if err := json.Unmarshal(text, &topology); err != nil {
		return topology, err
	}
	return topology, topology.Check()
}

func isEmpty(t *driver.Topology) bool { return len(t.Channels)+len(t.Subscriptions) == 0 }

// part is something that the environment names: the broker's driver, or the
// database beside it.
type part struct {
	name  string
	value any
}

var errNothingNamed = errors.New("the environment names neither a broker nor a database: set EVENT_DRIVER, or DATABASE_URL or SQLITE_PATH")
