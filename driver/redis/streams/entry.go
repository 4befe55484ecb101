package streams

import (
	"encoding/json"
	"fmt"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/redis/internal/wire"
)

// entry is one entry of a stream.
type entry struct {
	id     id
	fields []string // names and values; nil when it was trimmed
}

// parseEntries reads what XREADGROUP returns for one stream.
func parseEntries(result rueidis.RedisResult) ([]entry, error) {
	list, err := result.ToArray()
	if err != nil {
		return nil, err
	}
	entries := make([]entry, len(list))
	for n := range list {
		pair, err := list[n].ToArray()
		if err != nil || len(pair) != 2 {
			return nil, fmt.Errorf("an entry: %w", orUnexpected(err))
		}
		text, err := pair[0].ToString()
		if err != nil {
			return nil, fmt.Errorf("an entry: %w", err)
		}
		if entries[n].id, err = parseID(text); err != nil {
			return nil, err
		}
		if pair[1].IsNil() {
			continue
		}
		if entries[n].fields, err = pair[1].AsStrSlice(); err != nil {
			return nil, fmt.Errorf("entry %s: %w", text, err)
		}
	}
	return entries, nil
}

// message is what an entry says, and why nobody can handle it.
func (e *entry) message(channel string) (m driver.Message, giveUp string) {
	m.Channel = channel
	m.Headers = make(driver.Headers, 0, len(e.fields)/2)
	found := false
	for n := 0; n+1 < len(e.fields); n += 2 {
		name, value := e.fields[n], e.fields[n+1]
		m.Size += len(name) + len(value)
		switch name {
		case wire.FieldBody:
			m.Body, found = []byte(value), true
		case wire.FieldKey:
			m.Key = value
		default:
			m.Headers = append(m.Headers, driver.Header{Name: name, Value: value})
		}
	}
	if m.Key == "" {
		m.Key = m.Headers.Get(driver.HeaderAggregateID)
	}
	if found {
		return m, ""
	}
	// Whoever reads the dead letter sees all that the entry had.
	fields := make(map[string]string, len(m.Headers))
	for _, h := range m.Headers {
		fields[h.Name] = h.Value
	}
	m.Body, _ = json.Marshal(fields) // strings always marshal
	return m, foreign
}

// foreign is the reason of a dead letter that no publisher of ours wrote.
const foreign = "foreign"
