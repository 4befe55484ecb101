package faults

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Words of a journal.
const (
	wordTry          = "try"          // a publisher is about to publish
	wordStored       = "stored"       // and has a nil for it
	wordSent         = "sent"         // a relay is about to send
	wordMarked       = "marked"       // and has taken the row out
	wordBegun        = "begun"        // a process has begun
	wordReady        = "ready"        // a consumer has joined
	wordReceived     = "received"     // its driver has delivered; the reason is the source
	wordSettled      = "settled"      // and knows that it is finished
	wordStarted      = "started"      // and so on: what the engine tells its observers
	wordHandled      = "handled"      //
	wordFailed       = "failed"       // the attempt is over, another will come
	wordDeduplicated = "deduplicated" //
	wordDead         = "dead"         //
	wordDiscarded    = "discarded"    //
	wordStoreFailed  = "store-failed" //
	wordGuard        = "guard"        // the outage guard closed
	wordHealthy      = "healthy"      // Health says ready
	wordUnready      = "unready"      // and does not, any more
	wordReturned     = "returned"     // the bus's Run has returned
	wordHalted       = "halted"       // it stands still at a named point
	wordFault        = "fault"        // a fault hits this process now; the reason is the source that it has lost, or empty for all
	wordDied         = "died"         // the trial: the process is gone
)

// entry is one line.
type entry struct {
	process string
	word    string
	id      string
	place   Step
	count   int
	reason  string
	at      int64 // nanoseconds since 1970
}

// Step is one event of the suite: a number of one aggregate, from 0 on.
type Step struct {
	ID        string
	Aggregate string
	Number    int
}

// journal is a file that one process appends to. Each line is one write, so it is
// with the system when the process goes on, and outlives its kill.
type journal struct {
	mu   sync.Mutex
	file *os.File
	line []byte
}

func openJournal(path string) (*journal, error) {
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("faults: %w", err)
	}
	return &journal{file: file}, nil
}

func (j *journal) write(entries ...entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.line = j.line[:0]
	for _, e := range entries {
		if e.at == 0 {
			e.at = time.Now().UnixNano()
		}
		j.line = fmt.Appendf(j.line, "%s\t%s\t%s\t%d\t%d\t%s\t%d\n", e.word, e.id, e.place.Aggregate, e.place.Number, e.count, oneLine(e.reason), e.at)
	}
	if _, err := j.file.Write(j.line); err != nil {
		fmt.Fprintln(os.Stderr, "faults: the journal:", err)
		os.Exit(3) // a process that nobody can judge
	}
}

func oneLine(text string) string {
	text = strings.NewReplacer("\t", " ", "\n", " ").Replace(text)
	return text[:min(len(text), 300)]
}

// reader follows one journal.
type reader struct {
	path    string
	process string
	offset  int64
	rest    []byte
}

// read returns what was written since the last call, whole lines only.
func (r *reader) read() ([]entry, error) {
	file, err := os.Open(r.path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // it was only read
	var grown bytes.Buffer
	if _, err := file.Seek(r.offset, 0); err != nil {
		return nil, err
	}
	n, err := grown.ReadFrom(file)
	if err != nil {
		return nil, err
	}
	r.offset += n
	text := append(r.rest, grown.Bytes()...)
	end := bytes.LastIndexByte(text, '\n') + 1
	r.rest = bytes.Clone(text[end:])
	return parse(r.process, string(text[:end]))
}

// parse reads whole lines of a process.
func parse(process, text string) (entries []entry, err error) {
	for line := range strings.Lines(text) {
		words := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(words) != 7 {
			return nil, fmt.Errorf("faults: the journal of %s: a line of %d words", process, len(words))
		}
		number, err1 := strconv.Atoi(words[3])
		count, err2 := strconv.Atoi(words[4])
		at, err3 := strconv.ParseInt(words[6], 10, 64)
		if err1 != nil || err2 != nil || err3 != nil {
			return nil, fmt.Errorf("faults: the journal of %s: %q", process, line)
		}
		entries = append(entries, entry{process, words[0], words[1], Step{words[1], words[2], number}, count, words[5], at})
	}
	return entries, nil
}

const journalSuffix = ".journal"

func journalPath(folder, process string) string { return filepath.Join(folder, process+journalSuffix) }

// readAll returns what the processes of a folder whose names begin so have
// written.
func readAll(folder, prefix string) (all []entry, err error) {
	paths, err := filepath.Glob(filepath.Join(folder, prefix+"*"+journalSuffix))
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		r := reader{path: path, process: strings.TrimSuffix(filepath.Base(path), journalSuffix)}
		entries, err := r.read()
		if err != nil {
			return nil, err
		}
		all = append(all, entries...)
	}
	return all, nil
}
